"""The driver's batch: advantages (B, T) times token weights, whatever verl later does with the rows.

B rows (trajectories), T response tokens, right-padded, as in a padded ``verl.DataProto``. Rows may stand in any order:
verl has balanced them by length before. A row of padding has no valid token, so it is in no statistic.
"""

from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor

from covgrpo.engines.entropy import EntropyHold
from covgrpo.engines.training_batch import weigh_rows
from covgrpo.engines.verl.config_section import Choice
from covgrpo.errors import UserError


def weigh_batch(
    data: Any,
    choice: Choice,
    keys: Sequence[str] | None = None,
    hold: EntropyHold | None = None,
    entropies: Tensor | None = None,
) -> dict[str, float]:
    """Multiply ``data.batch["advantages"]`` by the token weights.

    Args:
        data: a ``verl.DataProto``, or what has its ``batch`` (mapping of tensors) and ``non_tensor_batch``. Read are
            ``old_log_probs``, ``advantages`` (B, T) float, ``response_mask`` (B, T) 0/1 and the row's prompt ``uid``
            (B,). Only ``advantages`` is replaced, by a new tensor (``returns`` may be the same one), 0 where masked.
        choice: scheme and scope. ``none`` leaves the advantages as they are.
        keys: (B,) verl's names of the rows; see :func:`covgrpo.engines.training_batch.weigh_rows`.
        hold: of a weighting that holds the entropy.
        entropies: (B, T) float, nats; see there.

    Returns:
        ``cov/*``, ``weight/*`` and ``update/*`` of docs/metrics.md over all valid tokens; empty where there is none.

    Raises:
        UserError: a column is missing; names it.
        ValueError: see there.

    """
    logps, advantages, mask = (column_of(data.batch, name) for name in ("old_log_probs", "advantages", "response_mask"))
    rows = logps, advantages, mask.bool(), _uids(data), keys
    weighted, metrics = weigh_rows(choice.weighting, choice.scope, *rows, hold, entropies)
    if choice.weighs:
        data.batch["advantages"] = weighted
    return metrics


def column_of(batch: Any, name: str) -> Tensor:
    """Return a tensor of a mapping.

    Raises:
        UserError: it is missing.

    """
    value = batch.get(name, None)
    if not isinstance(value, Tensor):
        raise UserError(f"verl's batch has no {name!r} where the advantages are computed; the token weights need it.")
    return value


def _uids(data: Any) -> list[Hashable]:
    uids = data.non_tensor_batch.get("uid", None)
    if uids is None:
        raise UserError("verl's batch has no 'uid' where the advantages are computed; it tells which rows are a group.")
    return list(uids)
