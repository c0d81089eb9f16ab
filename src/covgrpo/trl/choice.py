"""The weighting that a config asks for, fitted to its loss."""

from typing import Any

from covgrpo.core import Weighting, fit_normaliser, get_weighting
from covgrpo.trl.penalty import check_penalty

# What TRL's losses divide a token by, up to one number for all. vespo weighs whole completions anew.
NORMALISERS = {
    "grpo": "completion",
    "sapo": "completion",
    "dapo": "token",
    "bnpo": "token",
    "dr_grpo": "token",
    "cispo": "token",
    "luspo": "token",
}


def choose_weighting(args: Any) -> Weighting:
    """Build ``args.weighting`` for the loss of a ``CovGRPOConfig``.

    Raises:
        ValueError: an unknown weighting or hyperparameter, or a loss that the weighting does not fit; one sentence.

    """
    weighting = get_weighting(args.weighting, **(args.weighting_kwargs or {}))
    if hasattr(weighting, "penalties"):
        check_penalty(args)
    if not hasattr(weighting, "normaliser"):
        return weighting
    for name, fits in (("importance_sampling_level", "token"), ("top_entropy_quantile", 1.0)):
        if getattr(args, name) != fits:
            raise ValueError(f"weighting={args.weighting!r} needs {name}={fits!r}, not {getattr(args, name)!r}.")
    if args.mask_truncated_completions:
        raise ValueError(
            f"weighting={args.weighting!r} needs mask_truncated_completions=False: without its truncated completions "
            "the advantages of a group no longer have mean 0."
        )
    if args.weighting_scope == "batch" and args.steps_per_generation > args.gradient_accumulation_steps:
        raise ValueError(
            f"weighting={args.weighting!r} needs whole groups: with weighting_scope='batch' steps_per_generation "
            f"({args.steps_per_generation}) must not exceed gradient_accumulation_steps "
            f"({args.gradient_accumulation_steps}), as TRL then deals the completions of a group to several steps."
        )
    return fit_normaliser(weighting, NORMALISERS.get(args.loss_type), f"loss_type={args.loss_type!r}")


def check_engine(args: Any, sharded: bool) -> None:
    """Check what only a trainer knows.

    Raises:
        ValueError: an option combination that cannot be exact; one sentence.

    """
    if args.entropy_probe_steps and sharded:
        raise ValueError(
            f"entropy_probe_steps is {args.entropy_probe_steps}; it cannot be used where FSDP or DeepSpeed shards "
            "the parameters."
        )
