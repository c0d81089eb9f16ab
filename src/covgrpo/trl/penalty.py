"""A penalty coef * |log pi - log pi_old| on chosen tokens (KL-Cov), inside TRL's own loss.

TRL's clipped losses are -min(r A, clip(r) A) with r = pi / pi_old. Where nothing is clipped, the advantage

    A' = A - coef * |log pi - log pi_old| / r          gives          -r A' = -r A + coef * |log pi - log pi_old|,

value and gradient, under whatever normalisation the loss type has. So the penalty enters through the advantages, which
the loss reads after it has scored the policy. r and 1 / r are taken in float64: in float32 they leave its range where a
token's log-prob has fallen by 83 nats, and 0 * inf is NaN.
"""

from typing import Any

import torch
from torch import Tensor, nn
from trl import GRPOTrainer

from covgrpo.trl.methods import NO_CLIPPING

# Loss types of the form above; cispo, sapo and vespo treat the ratio otherwise.
SUPPORTED_LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")


# |log pi - log pi_old| in nats up to which the penalty is exact; beyond it fades, as 1 / r stays there.
_REACH = 600.0
_REACH_WITHOUT_FLOAT64 = 60.0


class TokenPenalty(GRPOTrainer):
    """Adds the penalty of a weighting that has one."""

    _penalised: dict[str, Any] | None = None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not hasattr(self.weighting, "penalties"):
            return
        name = self.args.weighting
        if self.loss_type not in SUPPORTED_LOSS_TYPES or self.importance_sampling_level != "token":
            raise ValueError(
                f"weighting={name!r} adds a penalty that loss_type={self.loss_type!r} with "
                f"importance_sampling_level={self.importance_sampling_level!r} cannot carry; use token level and one "
                f"of {', '.join(SUPPORTED_LOSS_TYPES)}."
            )
        if min(self.epsilon_low, self.epsilon_high) < NO_CLIPPING or self.args.delta is not None:
            raise ValueError(
                f"weighting={name!r} is defined without PPO clipping: set epsilon={NO_CLIPPING:g} (and no "
                "epsilon_high below it, no delta)."
            )

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        # On-policy log pi = log pi_old, so the penalty is 0. It must not be computed: |x| has slope +-1 beside 0, and
        # two scoring passes differ by rounding.
        on_policy = "old_per_token_logps" not in inputs or int(inputs["rollout_step"]) == self.state.global_step
        if "kl_penalty" not in inputs or on_policy:
            return super()._compute_loss(model, inputs)
        # A copy: the advantages of this micro-batch are needed again by later updates.
        self._penalised = dict(inputs)
        try:
            return super()._compute_loss(model, self._penalised).float()
        finally:
            self._penalised = None

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        scores = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._penalised is None or not torch.is_grad_enabled():
            return scores
        has_float64 = scores[0].device.type != "mps"
        logps = scores[0].double() if has_float64 else scores[0]
        log_ratio = logps - self._penalised["old_per_token_logps"]
        inverse_ratio = torch.exp(-log_ratio.clamp(min=-(_REACH if has_float64 else _REACH_WITHOUT_FLOAT64)))
        penalty = self._penalised["kl_penalty"] * log_ratio.abs()
        self._penalised["advantages"] = self._penalised["advantages"] - penalty * inverse_ratio
        return logps, *scores[1:]
