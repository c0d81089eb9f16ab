"""The weightings that exist for the studies only (studies/ablations.py), against loops over plain floats."""

import math
import sys
from pathlib import Path

import pytest
import reference_through
import torch
from core_cases import close, sample_batch
from reference import group_covariance, group_weights

from covgrpo.core import get_weighting

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def studies_are_found(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "studies"]:
        del sys.modules[name]


def loop(inputs, groups, weights_of):
    """Weights (B, T) from ``weights_of`` (log-probs, advantages of a group's valid tokens), for lists of rows."""
    logps, advantages, mask = inputs.logps, inputs.advantages, inputs.mask
    out = torch.zeros(logps.shape, dtype=torch.float64)
    for rows in groups:
        cells = [(i, t) for i in rows for t in range(logps.shape[1]) if mask[i, t]]
        found = weights_of([logps[i, t].item() for i, t in cells], [advantages[i].item() for i, _ in cells])
        for cell, weight in zip(cells, found, strict=True):
            out[cell] = weight
    return out


def rows_of_groups(group_ids):
    ids = group_ids.tolist()
    return [[i for i, other in enumerate(ids) if other == name] for name in dict.fromkeys(ids)]


def kernel(scale, keep):
    """w~ of exp(-keep(c)^2 / (2 (scale sigma)^2))."""

    def weights_of(lp, adv):
        c = group_covariance(lp, adv)
        mean = sum(c) / len(c)
        variance = sum((x - mean) ** 2 for x in c) / len(c)
        if len(set(adv)) == 1:
            return [1.0 for _ in c]
        w = [math.exp(-(keep(x) ** 2) / (2 * scale**2 * variance)) for x in c]
        return [x * len(w) / sum(w) for x in w]

    return weights_of


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_bandwidth(scale):
    inputs = sample_batch(3)
    actual = get_weighting("studies.ablations:Bandwidth", scale=scale)(*inputs.args())
    close(actual, loop(inputs, rows_of_groups(inputs.group_ids), kernel(scale, lambda c: c)))


def test_negative_side_damps_only_c_below_zero():
    inputs = sample_batch(4)
    actual = get_weighting("studies.ablations:NegativeSide")(*inputs.args())
    close(actual, loop(inputs, rows_of_groups(inputs.group_ids), kernel(1.0, lambda c: min(c, 0.0))))


def test_micro_batch_is_the_kernel_over_the_rows_that_land_together():
    inputs = sample_batch(5)
    order = torch.randperm(len(inputs.logps), generator=torch.Generator().manual_seed(len(inputs.logps))).tolist()
    together = [order[start : start + 4] for start in range(0, len(order), 4)]
    actual = get_weighting("studies.ablations:MicroBatch", rows=4)(*inputs.args())
    close(actual, loop(inputs, together, group_weights))
    exact = get_weighting("gaussian")(*inputs.args())
    assert (actual - exact).abs().max() > 0.1, "the defect that it stands for must show"


def by_groups(inputs, of):
    """``of`` (live log-probs, advantages, completion of each token) of each group, laid out (B, T)."""
    out = torch.zeros(inputs.logps.shape, dtype=torch.float64)
    for rows in rows_of_groups(inputs.group_ids):
        cells = [(i, t) for i in rows for t in range(inputs.logps.shape[1]) if inputs.mask[i, t]]
        live = torch.stack([inputs.logps[cell] for cell in cells]).requires_grad_()
        found = of(live, [inputs.advantages[i].item() for i, _ in cells], [i for i, _ in cells])
        for cell, value in zip(cells, found.tolist(), strict=True):
            out[cell] = value
    return out


def test_completion_means_are_the_live_weights_held_constant():
    inputs = sample_batch(3)
    actual = get_weighting("studies.ablations:CompletionMeans")(*inputs.args())
    close(actual, by_groups(inputs, reference_through.live_weights))


@pytest.mark.parametrize("normaliser", ["completion", "token"])
def test_the_gradient_through_the_kernel_of_the_text(normaliser):
    inputs = sample_batch(3)

    def effective(live, adv, rows):
        shares = reference_through.token_shares(rows, normaliser)
        A, n = torch.tensor(adv, dtype=torch.float64), torch.tensor(shares, dtype=torch.float64)
        if len(set(adv)) == 1:
            return torch.ones(len(adv))
        c = (live - live.mean()) * (A - A.mean())
        w = torch.exp(-(c**2) / (2 * c.var(correction=0)))
        objective = (n * A * w * len(w) / w.sum() * torch.exp(live - live.detach())).sum()
        return torch.autograd.grad(objective, live)[0] / (n * A)

    actual = get_weighting("studies.ablations:Through", normaliser=normaliser)(*inputs.args())
    close(actual, by_groups(inputs, effective))


def test_padded_mean_of_the_kernel_of_the_text():
    inputs = sample_batch(3)
    actual = get_weighting("studies.ablations:PaddedMean")(*inputs.args())
    plain = get_weighting("gaussian")(*inputs.args())
    for rows in rows_of_groups(inputs.group_ids):
        n = [size for size in inputs.mask[rows].sum(1).tolist() if size]
        close(actual[rows], plain[rows] * len(n) * max(n) / sum(n))
