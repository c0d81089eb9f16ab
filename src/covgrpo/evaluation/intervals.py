"""Confidence intervals for scores, and the unbiased pass@k. Scores and confidences are fractions, not percent."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

# Resampled values drawn at a time: 4 million int64 indices are 32 MB.
_CHUNK_VALUES = 4_000_000


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    r"""Wilson's score interval for a proportion: ``(low, high)`` in fractions.

    With :math:`\hat p = s / n` and :math:`z` the normal quantile of :math:`(1 + confidence) / 2`,

    .. math:: \frac{\hat p + z^2 / 2n \pm z \sqrt{\hat p (1 - \hat p) / n + z^2 / 4n^2}}{1 + z^2 / n}

    Wilson (1927), "Probable inference, the law of succession, and statistical inference", JASA 22, 209-212;
    recommended for small ``n`` by Brown, Cai, DasGupta (2001), doi:10.1214/ss/1009213286. The ``n`` trials must be
    independent: for several samples a problem use ``bootstrap_mean`` over problems.

    Raises:
        ValueError: ``n < 1``, ``successes`` outside ``[0, n]``, ``confidence`` outside ``(0, 1)``.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"wilson needs 0 <= successes <= n and n >= 1, not successes={successes}, n={n}")
    _check_confidence(confidence)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = successes / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At the ends the bounds are 0 and 1 exactly; rounding would leave 1e-17.
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == n else (centre + half) / scale
    return low, high


def bootstrap_mean(
    values_per_problem: Sequence[float], seed: int, confidence: float = 0.95, resamples: int = 10_000
) -> tuple[float, float]:
    r"""Percentile bootstrap interval for the mean over problems: ``(low, high)`` in the values' unit.

    Draws ``resamples`` samples of the :math:`P` problems with replacement, and takes the
    :math:`(1 \mp confidence) / 2` quantiles of their means. Problems, not samples, are drawn: samples of one problem
    are not independent. Efron (1979), doi:10.1214/aos/1176344552. With few problems (below about 20) percentile
    intervals are too narrow.

    Raises:
        ValueError: no values, a value that is not finite, ``confidence`` outside ``(0, 1)``, ``resamples < 1``.
    """
    values_P = np.asarray(values_per_problem, dtype=np.float64)
    if values_P.ndim != 1 or values_P.size == 0 or not np.isfinite(values_P).all():
        raise ValueError(f"bootstrap_mean needs one finite value a problem, not an array of shape {values_P.shape}")
    if resamples < 1:
        raise ValueError(f"bootstrap_mean needs resamples >= 1, not {resamples}")
    _check_confidence(confidence)
    means_R = _resampled_means(values_P, np.random.default_rng(seed), resamples)
    low, high = np.quantile(means_R, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _resampled_means(values_P: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    P = values_P.size
    rows = max(1, _CHUNK_VALUES // P)
    chunks = [
        values_P[rng.integers(0, P, size=(min(rows, resamples - start), P))].mean(axis=1)
        for start in range(0, resamples, rows)
    ]
    return np.concatenate(chunks)


def pass_at_k(n: int, c: int, k: int) -> float:
    r"""The unbiased estimate of pass@k from ``n`` samples of one problem with ``c`` correct, as a fraction.

    .. math:: 1 - \binom{n - c}{k} / \binom{n}{k}

    the chance that ``k`` of the ``n`` samples, drawn without replacement, hold a correct one (Chen et al. 2021,
    arXiv 2107.03374, equation 1). Computed in whole numbers, so it is exact up to the last rounding.

    Raises:
        ValueError: ``k < 1``, ``k > n``, or ``c`` outside ``[0, n]``.
    """
    if not (1 <= k <= n and 0 <= c <= n):
        raise ValueError(f"pass_at_k needs 1 <= k <= n and 0 <= c <= n, not n={n}, c={c}, k={k}")
    total = math.comb(n, k)
    return (total - math.comb(n - c, k)) / total


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not a fraction between 0 and 1")
