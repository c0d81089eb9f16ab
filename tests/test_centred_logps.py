"""What the entropy is driven by to first order, against tabular policies worked out in full."""

import math
import random

import pytest
import torch

from covgrpo import token_covariance
from covgrpo.core.covariance import centred_logps
from covgrpo.core.weighting.neutral import Neutral


def tabular(seed, num_states=5, num_tokens=12):
    """States whose probabilities are counts over 12: a batch of 12 tokens a state holds every action as often as drawn.

    Returns for each token: log-prob, entropy of its state, advantage; and the states as (probabilities, advantages).
    """
    rng = random.Random(seed)
    tokens, states = [], []
    for _ in range(num_states):
        cuts = sorted(rng.sample(range(1, num_tokens), rng.randint(0, 3)))
        counts = [b - a for a, b in zip([0, *cuts], [*cuts, num_tokens], strict=True)]
        p = [count / num_tokens for count in counts]
        A = [rng.gauss(0, 1) + rng.gauss(0, 2) * len(p) for _ in p]  # states differ in their mean
        h = -math.fsum(x * math.log(x) for x in p)
        states.append((p, A))
        tokens += [(math.log(x), h, a) for x, a, count in zip(p, A, counts, strict=True) for _ in range(count)]
    return tokens, states


def change_of_entropy(states, eps=1e-6):
    """Mean over the states of dH, by differences, along the natural policy gradient: logits move by A."""
    total = 0.0
    for p, A in states:
        found = []
        for sign in (1, -1):
            moved = [x * math.exp(sign * eps * a) for x, a in zip(p, A, strict=True)]
            q = [x / math.fsum(moved) for x in moved]
            found.append(-math.fsum(x * math.log(x) for x in q))
        total += (found[0] - found[1]) / (2 * eps)
    return total / len(states)


@pytest.mark.parametrize("seed", range(20))
def test_with_centred_log_probs_the_mean_covariance_is_minus_the_change_of_the_entropy(seed):
    tokens, states = tabular(seed)
    logps, h, A = (torch.tensor([values], dtype=torch.float64) for values in zip(*tokens, strict=True))
    mask = torch.ones_like(logps)
    x = centred_logps(logps, h)
    assert x.mean().item() == pytest.approx(0, abs=1e-12)
    assert token_covariance(x, A, mask).mean().item() == pytest.approx(-change_of_entropy(states), rel=1e-5, abs=1e-6)


def test_with_log_probs_as_they_are_it_is_another_number():
    """Between the states: uncertain ones with a low advantage raise mean(c), and no entropy falls by it."""
    sure, torn = (1.0,), (0.5, 0.5)
    tokens = [(0.0, 0.0, 1.0)] * 4 + [(math.log(0.5), math.log(2), -1.0)] * 4
    logps, h, A = (torch.tensor([values], dtype=torch.float64) for values in zip(*tokens, strict=True))
    assert change_of_entropy([(sure, (1.0,)), (torn, (-1.0, -1.0))]) == pytest.approx(0, abs=1e-9)
    mask = torch.ones_like(logps)
    assert token_covariance(logps, A, mask).mean().item() > 0.3
    assert token_covariance(centred_logps(logps, h), A, mask).abs().max().item() == 0
    assert (Neutral(kappa=5.0)(centred_logps(logps, h), A, mask) == 1).all(), "nothing to hold: no weight moves"


def test_dtypes_follow_the_log_probs():
    assert centred_logps(torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1)).dtype == torch.float64
    assert centred_logps(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.float64)).dtype == torch.float32
