"""Names of transformers that TRL 1.16 still uses, and of which transformers 5.23 warns."""

import warnings

_ASKED_BY_TRL = r"`(is_gradient_checkpointing|gradient_checkpointing_(enable|disable))` is deprecated"


def quiet_about_trl() -> None:
    """Leave out the warnings of what TRL itself reads and calls around each rollout: no script can do otherwise.

    A filter that stays, and not one around each call: that one would let every other warning be shown at each step
    anew. The option ``gradient_checkpointing`` is the user's own, and transformers goes on warning of it.
    """
    warnings.filterwarnings("ignore", message=_ASKED_BY_TRL, category=FutureWarning)
