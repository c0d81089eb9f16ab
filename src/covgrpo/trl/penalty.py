"""A penalty coef * |log pi - log pi_old| on chosen tokens (KL-Cov), inside TRL's own loss.

TRL's clipped losses are -min(r A, clip(r) A) with r = pi / pi_old. Where nothing is clipped, the advantage

    A' = A - coef * |log pi - log pi_old| / r          gives          -r A' = -r A + coef * |log pi - log pi_old|,

value and gradient, under whatever normalisation the loss type has. So the penalty enters through the advantages, which
the loss reads after it has scored the policy. r and 1 / r are taken in float64: in float32 they leave its range where a
token's log-prob has fallen by 83 nats, and 0 * inf is NaN.
"""

from typing import Any

import torch
from torch import Tensor

from covgrpo.hardware import widest_float
from covgrpo.trl.methods import NO_CLIPPING

# Loss types of the form above; cispo, sapo and vespo treat the ratio otherwise.
SUPPORTED_LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")

# |log pi - log pi_old| in nats up to which the penalty is exact; beyond it fades, as 1 / r stays there.
_REACH = 600.0
_REACH_WITHOUT_FLOAT64 = 60.0


def check_penalty(args: Any) -> None:
    """Check that the loss of a ``CovGRPOConfig`` can carry a penalty.

    Raises:
        ValueError: it cannot; names the option.

    """
    name = args.weighting
    if args.loss_type not in SUPPORTED_LOSS_TYPES or args.importance_sampling_level != "token":
        raise ValueError(
            f"weighting={name!r} adds a penalty that loss_type={args.loss_type!r} with "
            f"importance_sampling_level={args.importance_sampling_level!r} cannot carry; use token level and one "
            f"of {', '.join(SUPPORTED_LOSS_TYPES)}."
        )
    high = args.epsilon if args.epsilon_high is None else args.epsilon_high
    if min(args.epsilon, high) < NO_CLIPPING or args.delta is not None:
        raise ValueError(
            f"weighting={name!r} is defined without PPO clipping: set epsilon={NO_CLIPPING:g} (and no "
            "epsilon_high below it, no delta)."
        )


def inert_penalty(args: Any) -> str | None:
    """Why a penalty does nothing in a run of a ``CovGRPOConfig``; ``None`` where it acts."""
    if args.num_iterations > 1 or args.steps_per_generation > args.gradient_accumulation_steps:
        return None
    return (
        f"{args.weighting} will do nothing: its penalty is on what the second update of a batch changes, and each "
        "batch has one; it acts with num_iterations of 2 and more."
    )


def penalise(inputs: dict[str, Any], penalties: Tensor, logps: Tensor) -> Tensor:
    """Take the penalty off ``inputs["advantages"]`` for ``logps`` (B, T); return them as the loss has to take them."""
    wide = widest_float(logps.device)
    logps = logps.to(wide)
    log_ratio = logps - inputs["old_per_token_logps"]
    inverse_ratio = torch.exp(-log_ratio.clamp(min=-(_REACH if wide == torch.float64 else _REACH_WITHOUT_FLOAT64)))
    inputs["advantages"] = inputs["advantages"] - penalties * log_ratio.abs() * inverse_ratio
    return logps
