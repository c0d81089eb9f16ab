"""Confidence intervals and pass@k against published values, closed forms, brute force and simulation."""

from itertools import combinations
from math import comb

import numpy as np
import pytest

import covgrpo.evaluation.intervals as intervals
from covgrpo.evaluation.intervals import bootstrap_mean, pass_at_k, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe 1998 (Statistics in Medicine 17, 857-872), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_known_values(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_bounds_solve_the_score_equation() -> None:
    z = 1.6448536269514722  # 90 %, two-sided
    for bound in wilson(7, 40, confidence=0.9):
        assert abs(7 / 40 - bound) == pytest.approx(z * (bound * (1 - bound) / 40) ** 0.5, rel=1e-9)


def test_wilson_is_symmetric_and_exact_at_the_ends() -> None:
    low, high = wilson(3, 17)
    assert wilson(14, 17) == pytest.approx((1 - high, 1 - low))
    assert wilson(0, 5)[0] == 0.0
    assert wilson(5, 5)[1] == 1.0
    assert wilson(5, 5)[0] < 1.0


def test_wilson_covers_at_the_stated_rate() -> None:
    # Exact: at one proportion the coverage swings by 2 points, as counts are whole; over all of them it is 95 %.
    n = 60
    low, high = np.array([wilson(k, n) for k in range(n + 1)]).T
    ways = np.array([comb(n, k) for k in range(n + 1)], dtype=float)
    coverage = []
    for p in np.linspace(0.02, 0.98, 481):
        chances = ways * p ** np.arange(n + 1) * (1 - p) ** np.arange(n, -1, -1)
        coverage.append(chances[(low <= p) & (p <= high)].sum())
    assert 0.948 < np.mean(coverage) < 0.957
    assert min(coverage) > 0.88


@pytest.mark.parametrize(("successes", "n", "confidence"), [(0, 0, 0.95), (-1, 5, 0.95), (6, 5, 0.95), (1, 5, 95)])
def test_wilson_refuses(successes: int, n: int, confidence: float) -> None:
    with pytest.raises(ValueError, match=r"wilson|confidence"):
        wilson(successes, n, confidence)


def test_bootstrap_matches_the_normal_interval_for_many_problems() -> None:
    values = np.random.default_rng(1).random(400)
    error = values.std() / 20
    expected = (values.mean() - 1.95996 * error, values.mean() + 1.95996 * error)
    assert bootstrap_mean(values.tolist(), seed=0) == pytest.approx(expected, abs=0.1 * error)


def test_bootstrap_of_two_problems_is_the_exact_distribution() -> None:
    # Means 0, 1/2, 1 with chances 1/4, 1/2, 1/4.
    assert bootstrap_mean([0.0, 1.0], seed=0, confidence=0.6) == (0.0, 1.0)
    assert bootstrap_mean([0.0, 1.0], seed=0, confidence=0.4) == (0.5, 0.5)


def test_bootstrap_is_seeded() -> None:
    values = np.random.default_rng(2).random(30).tolist()
    assert bootstrap_mean(values, seed=5) == bootstrap_mean(values, seed=5)
    assert bootstrap_mean(values, seed=5) != bootstrap_mean(values, seed=6)


def test_bootstrap_draws_every_resample_when_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).random(30)
    whole = intervals._resampled_means(values, np.random.default_rng(5), 1000)
    monkeypatch.setattr(intervals, "_CHUNK_VALUES", 30 * 64)  # 15 chunks of 64 resamples and one of 40
    chunked = intervals._resampled_means(values, np.random.default_rng(5), 1000)
    assert chunked.shape == (1000,)
    np.testing.assert_allclose(chunked, whole, rtol=1e-12)


def test_bootstrap_covers_at_about_the_stated_rate() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(400):
        low, high = bootstrap_mean(rng.random(40).tolist(), seed=trial, resamples=400)
        covered += low <= 0.5 <= high
    assert 0.90 < covered / 400 < 0.98


@pytest.mark.parametrize("values", [[], [0.5, float("nan")], [[0.5]]])
def test_bootstrap_refuses(values: list) -> None:
    with pytest.raises(ValueError, match="bootstrap_mean"):
        bootstrap_mean(values, seed=0)


def test_pass_at_k_counts_all_subsets() -> None:
    for n in range(1, 7):
        for c in range(n + 1):
            for k in range(1, n + 1):
                hits = [min(subset) < c for subset in combinations(range(n), k)]
                assert pass_at_k(n, c, k) == pytest.approx(sum(hits) / len(hits), abs=1e-15)


def test_pass_at_k_large_counts() -> None:
    product = 1 - np.prod(1.0 - 100 / np.arange(9901, 10001))  # the paper's numerically stable form, k = c = 100
    assert pass_at_k(10_000, 100, 100) == pytest.approx(product, rel=1e-9)
    assert pass_at_k(200, 0, 100) == 0.0
    assert pass_at_k(200, 101, 100) == 1.0


@pytest.mark.parametrize(("n", "c", "k"), [(4, 2, 5), (4, 5, 1), (4, 2, 0), (4, -1, 1)])
def test_pass_at_k_refuses(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass_at_k"):
        pass_at_k(n, c, k)
