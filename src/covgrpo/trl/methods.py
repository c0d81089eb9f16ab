"""Methods by name: each is a handful of ``CovGRPOConfig`` options, so that every baseline runs in the same trainer.

``covgrpo train --method NAME``, or ``CovGRPOConfig(**METHODS["dr_grpo"], ...)``. The covariance methods are weightings
of ours; the others are TRL's own options, with the values of the papers.
"""

from typing import Any

from covgrpo.suggest import did_you_mean

# Clipping at 1 +- this never acts.
NO_CLIPPING = 1e6

METHODS: dict[str, dict[str, Any]] = {
    # GRPO (arXiv 2402.03300), with TRL's default token-level loss.
    "grpo": {"weighting": "none"},
    # Covariance-aware GRPO (arXiv 2605.11538).
    "gaussian": {"weighting": "gaussian"},
    # The same with the gradient through the weights, as in its first author's code (whose loss type is grpo).
    "gaussian_through": {"weighting": "gaussian_through"},
    "gaussian_raw": {"weighting": "gaussian_raw"},
    "gaussian_centred": {"weighting": "gaussian_centred"},
    "gaussian_one_sided": {"weighting": "gaussian_one_sided"},
    "gaussian_mad": {"weighting": "gaussian_mad"},
    # The least change of the weights that takes the mean covariance of the step to 0.
    "neutral": {"weighting": "neutral", "weighting_scope": "batch"},
    # The same, steered so that the entropy stays where it was at the start.
    "hold_entropy": {"weighting": "hold_entropy", "weighting_scope": "batch"},
    # The same from below only, at three quarters of the start's entropy: above it, plain GRPO.
    "entropy_floor": {"weighting": "entropy_floor", "weighting_scope": "batch"},
    # The kernel measured within each sign of the advantage, so that the rarer outcome is not damped for it.
    "gaussian_per_sign": {"weighting": "gaussian_per_sign"},
    # The mean covariance of the step to 0 at the cost of common tokens alone.
    "neutral_common": {"weighting": "neutral_common", "weighting_scope": "batch"},
    # Clip-Cov and KL-Cov (arXiv 2505.22617): statistics over the whole step and no PPO clipping, as in their recipe.
    "clip_cov": {"weighting": "clip_cov", "weighting_scope": "batch", "epsilon": NO_CLIPPING},
    "kl_cov": {"weighting": "kl_cov", "weighting_scope": "batch", "epsilon": NO_CLIPPING},
    # Probability reweighting (arXiv 2505.12929).
    "prob": {"weighting": "prob"},
    # The gate of the Delightful Policy Gradient (arXiv 2603.14608).
    "delight": {"weighting": "delight"},
    # Positive advantages alone: the weights of WAPO (arXiv 2606.16154).
    "positive_only": {"weighting": "positive_only"},
    # DAPO's clip-higher (arXiv 2503.14476).
    "clip_higher": {"weighting": "none", "epsilon": 0.2, "epsilon_high": 0.28},
    # Dr. GRPO (arXiv 2503.20783): no length and no standard-deviation normalisation.
    "dr_grpo": {"weighting": "none", "loss_type": "dr_grpo", "scale_rewards": "none"},
    # GSPO (arXiv 2507.18071): sequence-level ratios.
    "gspo": {
        "weighting": "none",
        "importance_sampling_level": "sequence",
        "loss_type": "grpo",
        "epsilon": 3e-4,
        "epsilon_high": 4e-4,
    },
    # CISPO (arXiv 2506.13585): the ratio is clipped, never the gradient.
    "cispo": {"weighting": "none", "loss_type": "cispo", "epsilon_high": 5.0},
    # SAPO (arXiv 2511.20347): soft gates instead of clipping.
    "sapo": {"weighting": "none", "loss_type": "sapo"},
    # Only the fifth of the tokens with the highest entropy (arXiv 2506.01939).
    "top_entropy": {"weighting": "none", "top_entropy_quantile": 0.2},
    # A bonus for the policy's entropy in the loss.
    "entropy_bonus": {"weighting": "none", "entropy_coef": 0.01},
}


def method_options(name: str) -> dict[str, Any]:
    """Return a copy of the options of a method.

    Raises:
        ValueError: an unknown name; the nearest is suggested.
    """
    if name not in METHODS:
        known = ", ".join(METHODS)
        raise ValueError(f"unknown method {name!r}; known: {known}.{did_you_mean(name, METHODS, cutoff=0.4)}")
    return dict(METHODS[name])
