"""SkyRL: a mix-in for its trainer, whose driver sees the whole training batch (skyrl 0.4).

class Trainer(TokenWeightedAdvantages, RayPPOTrainer):  # skyrl.train.trainer
    pass

and return it from ``get_trainer`` of your ``BasePPOExp``. Read in skyrl at commit a9564572e; its registries of losses
and advantage estimators cannot be exact (docs/engines.md).
"""

from typing import Any

from covgrpo.core import Weighting, fit_normaliser, get_weighting
from covgrpo.engines.training_batch import weigh_rows
from covgrpo.errors import UserError

# What ``trainer.algorithm.loss_reduction`` divides a token by, up to one number for all.
_NORMALISERS = {
    "token_mean": "token",
    "sequence_mean": "completion",
    "seq_mean_token_sum_norm": "token",
    "seq_mean_token_sum_norm_global": "token",
}


class TokenWeightedAdvantages:
    """Multiplies SkyRL's advantages by the Gaussian-kernel weights (arXiv 2605.11538), once a training batch.

    What SkyRL does to advantages afterwards (normalisation by batch, mini-batch and tokens) acts on weighted ones.
    Override ``token_weighting`` (:func:`covgrpo.get_weighting`) or ``weighting_scope`` (``group`` or ``batch``) in your
    class for another scheme.

    Raises:
        UserError: a scheme with a penalty in the loss, or one that ``trainer.algorithm.loss_reduction`` does not fit; a
            batch without the policy's own log-probs.

    """

    token_weighting: Any = get_weighting("gaussian")
    weighting_scope: str = "group"

    def compute_advantages_and_returns(self, data: Any) -> Any:
        """Weigh ``data["advantages"]`` (B, T); the metrics join SkyRL's ``all_metrics``."""
        if hasattr(self.token_weighting, "penalties"):
            raise UserError(f"token_weighting {self.token_weighting}: weights cannot express its penalty in the loss.")
        if hasattr(self.token_weighting, "controller"):
            raise UserError(
                f"token_weighting {self.token_weighting}: its controller has a state that SkyRL's checkpoints do not "
                "hold; use neutral with a fixed kappa."
            )
        data = super().compute_advantages_and_returns(data)  # type: ignore[misc]
        logps = data["action_log_probs"]
        if logps is None:
            raise UserError(
                "SkyRL skipped the policy's forward pass, so there are no log-probs in the trainer's numerics; the "
                "token weights need them (use a policy loss that reads action_log_probs)."
            )
        mask = (data["loss_mask"] > 0) & (data["response_mask"] > 0)
        columns = logps.cpu(), data["advantages"].cpu(), mask.cpu(), data.metadata["uids"]
        data["advantages"], metrics = weigh_rows(self._fitted_weighting(), self.weighting_scope, *columns)
        self.all_metrics.update(metrics)  # type: ignore[attr-defined]
        return data

    def _fitted_weighting(self) -> Weighting:
        if getattr(self.token_weighting, "normaliser", "") is not None:  # no such field, or chosen by the user
            weighting: Weighting = self.token_weighting
            return weighting
        reduction = self.cfg.trainer.algorithm.loss_reduction  # type: ignore[attr-defined]
        try:
            loss = f"trainer.algorithm.loss_reduction={reduction}"
            return fit_normaliser(self.token_weighting, _NORMALISERS.get(str(reduction)), loss)
        except ValueError as error:
            raise UserError(str(error)) from error
