"""The metrics of a step's tokens against plain loops."""

import math
from itertools import pairwise

import pytest
import reference
import torch

from covgrpo.metrics import (
    COVARIANCE_EDGES,
    SIDE_FRACTIONS,
    WEIGHT_EDGES,
    StepTokens,
    histograms,
    most_damped,
    summarise,
)
from covgrpo.metrics.summary import rank

F64 = torch.float64
EXACT = ("cov/pos", "cov/neg", "weight/min", "weight/max", "weight/q")


def step_tokens(**columns):
    """Columns given as lists; the rest is filled in."""
    n = len(columns["c"])
    fill = {"row": torch.arange(n), "position": torch.zeros(n), "token": torch.arange(n), "group": torch.zeros(n)}
    numbers = {"logps": [-1.0] * n, "advantages": [1.0] * n, "weights": [1.0] * n, "entropies": [0.5] * n}
    made = {name: torch.as_tensor(value) for name, value in {**fill, **numbers, **columns}.items()}
    for name in ("row", "position", "token", "group"):
        made[name] = made[name].long()
    return StepTokens(**made)


def random_tokens(n, seed, dtype=F64, groups=3):
    generator = torch.Generator().manual_seed(seed)

    def draw():
        return torch.randn(n, generator=generator, dtype=F64).to(dtype)

    c = draw()
    c[draw() > 1] = 0
    return step_tokens(
        c=c,
        group=torch.randint(groups, (n,), generator=generator),
        logps=-draw().abs(),
        advantages=draw(),
        weights=draw().square() - 0.1,  # some are negative
        entropies=draw().abs(),
    )


def as_reference(tokens):
    names = {"group": "group", "logp": "logps", "advantage": "advantages", "weight": "weights", "c": "c"}
    names["entropy"] = "entropies"
    columns = {key: getattr(tokens, name).tolist() for key, name in names.items()}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("n", [1, 2, 4, 5, 6, 99, 100, 101, 400])
def test_summary_equals_reference(n, dtype):
    tokens = random_tokens(n, seed=n, dtype=dtype)
    found, expected = summarise(tokens), reference.summary(as_reference(tokens))
    assert list(found) == list(expected)
    assert all(type(value) is float for value in found.values())
    for name, value in expected.items():
        exact = name.startswith(EXACT)
        assert found[name] == (value if exact else pytest.approx(value, rel=1e-11, abs=1e-14)), name


def test_summary_does_not_depend_on_the_order():
    tokens = random_tokens(300, seed=0)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    mixed = StepTokens(**{name: getattr(tokens, name)[order] for name in vars(tokens)})
    assert summarise(mixed) == pytest.approx(summarise(tokens), rel=1e-12)


def test_summary_of_golden_values():
    tokens = step_tokens(
        c=[4.0, -2.0, 1.0, 0.0, 2.0],
        weights=[0.0, 1.0, 1.0, 2.0, 1.0],
        advantages=[1.0, -1.0, 1.0, 0.0, 1.0],
        logps=[math.log(0.5)] * 5,
        entropies=[0.0, 1.0, 2.0, 3.0, 4.0],
    )
    found = summarise(tokens)
    # mean 1; deviations 3 -3 0 -1 1: 20 / 5 = 4.  ess: 5^2 / (5 * 7).  u = |A| / 2: 1/2 of 2; weighted 1/2 of 3/2
    assert found == pytest.approx(
        {
            "entropy": 2.0,
            "cov/mean": 1.0,
            "cov/sigma": 2.0,
            **{f"cov/pos_{f}": value for f, value in (("0.0001", 4), ("0.01", 4), ("0.2", 4), ("0.4", 2), ("1", 1))},
            **{f"cov/neg_{f}": -2.0 for f in ("0.0001", "0.01", "0.2", "0.4", "1")},
            "cov/weighted": 0.0,  # all log-probs are equal
            "weight/min": 0.0,
            "weight/q_0.01": 0.0,
            "weight/q_0.1": 0.0,
            "weight/q_0.5": 1.0,
            "weight/max": 2.0,
            "weight/ess": 5 / 7,
            "weight/reversed": 0.0,
            "update/top_share": 1 / 3,
            "update/top_share_unweighted": 1 / 4,
        }
    )


def test_the_quantiles_count_tokens_without_rounding_error():
    # k = ceil(f N) in integers, also at every N of which f is a whole number of tokens
    for name, share, one_in in (("0.0001", 1, 10_000), ("0.01", 1, 100), ("0.2", 1, 5), ("0.4", 2, 5)):
        for n in range(1, 20_001):
            assert rank(n, SIDE_FRACTIONS[name]) == (n * share + one_in - 1) // one_in
        for n in {1, 2, 3, 29, one_in - 1, one_in, one_in + 1, 2 * one_in}:
            summary = summarise(step_tokens(c=torch.arange(1, n + 1, dtype=F64)))
            assert summary[f"cov/pos_{name}"] == n + 1 - (n * share + one_in - 1) // one_in
            assert summary["cov/pos_1"] == 1 and "cov/neg_1" not in summary


def test_summary_of_nothing_and_of_zero_weights():
    assert summarise(step_tokens(c=torch.zeros(0))) == {}
    summary = summarise(step_tokens(c=[1.0, 1.0], weights=[0.0, 0.0]))
    assert summary["weight/ess"] == summary["weight/min"] == summary["update/top_share"] == 0.0
    assert summary["cov/sigma"] == 0.0 and summary["cov/mean"] == 1.0


def test_negative_weights_count_by_their_size_and_are_reported():
    tokens = step_tokens(c=[1.0, 1.0, 1.0, 1.0], weights=[2.0, -1.0, 2.0, 1.0], logps=[math.log(0.5)] * 4)
    found = summarise(tokens)
    assert found["weight/reversed"] == 1 / 4 and found["weight/min"] == -1
    assert found["weight/ess"] == pytest.approx(4**2 / (4 * 10))  # of |w| it would be 6^2 / 40
    assert found["update/top_share"] == pytest.approx(2 / 6)
    assert most_damped(tokens, 1).tolist() == [1]
    counts = histograms(tokens)["weight"]
    assert counts[1 + WEIGHT_EDGES.index(-1.0)] == 1 and sum(counts[: 1 + WEIGHT_EDGES.index(0.0)]) == 1


def test_covariances_of_a_step_are_those_of_whole_groups():
    """Without a column c the covariances are taken from all parts together."""
    tokens = random_tokens(60, seed=3)
    columns = {name: getattr(tokens, name) for name in vars(tokens) if name != "c"}
    parts = [{name: value[start : start + 20] for name, value in columns.items()} for start in (0, 20, 40)]
    joined = StepTokens.join(parts, lambda values: values)
    rows = [[value] for value in tokens.logps.tolist()]
    expected = reference.token_covariance(
        rows, [[a] for a in tokens.advantages.tolist()], [[1]] * 60, tokens.group.tolist()
    )
    torch.testing.assert_close(joined.c, torch.tensor(expected, dtype=F64)[:, 0], rtol=1e-10, atol=1e-12)
    assert StepTokens.join([{**parts[0], "c": tokens.c[:20]}], lambda values: values).c.equal(tokens.c[:20])


def test_histograms_count_every_token_of_a_group_with_an_advantage():
    tokens = random_tokens(500, seed=5)
    tokens.advantages[::7] = 0
    found = histograms(tokens)
    active = [(t["c"], t["weight"]) for t in as_reference(tokens) if t["advantage"] != 0]
    assert found["idle"] == 500 - len(active)
    for key, edges, values in (
        ("c", COVARIANCE_EDGES, [c for c, _ in active]),
        ("weight", WEIGHT_EDGES, [w for _, w in active]),
    ):
        bounds = [-math.inf, *edges, math.inf]
        expected = [sum(low <= value < high for value in values) for low, high in pairwise(bounds)]
        assert found[key] == expected and sum(found[key]) == len(active)


def test_histograms_of_infinite_weights_leave_them_out():
    found = histograms(step_tokens(c=[0.3, math.nan], weights=[math.inf, 1.0]))
    assert sum(found["c"]) == sum(found["weight"]) == 1


def test_the_most_damped_tokens():
    tokens = step_tokens(
        c=[0.1, -3.0, 5.0, 9.0, 0.2], weights=[1.0, 0.5, 0.5, 0.1, 1.0], advantages=[1.0, 1.0, 1.0, 0.0, -1.0]
    )
    assert most_damped(tokens, 3).tolist() == [2, 1, 4], "smallest weight, then |c|; none without an advantage"
    assert most_damped(tokens, 0).tolist() == []
