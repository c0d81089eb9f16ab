"""The script that says whose push a weighting keeps, on a group by hand."""

import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
from damped_push import pushes, table


def sample(prompt, advantage, probabilities, weights):
    tokens = {"logp": [math.log(p) for p in probabilities], "weight": weights}
    return {"step": 1, "prompt": prompt, "advantage": advantage, "tokens": tokens}


def test_a_group_by_hand():
    found = pushes(
        [
            sample("a", 3.0, [0.25, 1.0], [0.5, 0.8]),
            *[sample("a", -1.0, [0.5], [1.2]) for _ in range(3)],
            *[sample("b", 0.0, [0.1], [1.0]) for _ in range(4)],  # no advantage: in no row
        ]
    )
    rare, sure = found["up to 1/4", "above", "p < 0.5"], found["up to 1/4", "above", "p >= 0.5"]
    assert (rare.tokens, rare.before, rare.after) == (1, pytest.approx(3 * 0.75), pytest.approx(3 * 0.75 * 0.5))
    assert (sure.tokens, sure.before) == (1, 0.0)
    below = found["up to 1/4", "below", "p >= 0.5"]
    assert (below.tokens, below.before, below.after) == (3, pytest.approx(1.5), pytest.approx(1.8))
    assert len(found) == 3
    # shares: 2.25 of 3.75 before, 1.125 of 2.925 after
    assert "| up to 1/4 | above | p < 0.5 | 1 | 0.60 | 0.38 | 0.50 |" in table(found)
