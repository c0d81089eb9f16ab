"""Slow reference of the Gaussian kernel with the gradient through its weights: the loss itself, differentiated.

Shares no code with `covgrpo`. The objective of one group is written down with live log-probs, as the first author of
arXiv 2605.11538 has it in their code, and differentiated by autograd in float64. Inputs and outputs are nested lists,
as in reference.py; inside a group `live` (N,) are its log-probs, `adv` its advantages, `rows` each token's completion.
"""

import reference
import torch


def gaussian_through_weights(
    logps, advantages, mask, group_ids=None, normaliser="completion", padded_mean=False, sigma_floor=0.0
):
    """The factor on each advantage, held constant, that gives the gradient of `group_objective`."""
    out = [[0.0 for _ in row] for row in mask]
    for cells in reference.group_cells(mask, group_ids).values():
        lp, adv = reference.gather(logps, advantages, cells)
        rows = [i for i, _ in cells]
        live = torch.tensor(lp, dtype=torch.float64, requires_grad=True)
        objective = group_objective(live, adv, rows, normaliser, padded_mean, sigma_floor)
        (gradient,) = torch.autograd.grad(objective, live)
        for (i, t), g, a, n in zip(cells, gradient.tolist(), adv, token_shares(rows, normaliser), strict=True):
            # GRPO's own gradient at the token is n A
            out[i][t] = g / (n * a) if a else 1.0
    return out


def group_objective(live, adv, rows, normaliser, padded_mean=False, sigma_floor=0.0):
    """What their loss maximises in one group, less the KL term: sum_t n_t A_t w~_t pi_t / stopgrad(pi_t)."""
    n, A = torch.tensor(token_shares(rows, normaliser), dtype=torch.float64), torch.tensor(adv, dtype=torch.float64)
    ratio = torch.exp(live - live.detach())
    return (n * A * live_weights(live, adv, rows, padded_mean, sigma_floor) * ratio).sum()


def live_weights(live, adv, rows, padded_mean=False, sigma_floor=0.0):
    """w~ of one group with everything live that depends on log-probs."""
    lengths = [rows.count(i) for i in dict.fromkeys(rows)]
    # their mean weight: positions of the padded group / valid tokens
    scale = len(lengths) * max(lengths) / len(rows) if padded_mean else 1.0
    c = covariance(live, adv, rows)
    tolerance = reference.sigma_tolerance(live.tolist(), adv)
    if flat(adv, rows) or reference.group_sigma(c.tolist()) <= tolerance:
        return scale + 0 * live
    sigma = c.std(unbiased=False) + sigma_floor
    w = torch.exp(-(c**2) / (2 * sigma**2))
    return scale * w * len(w) / w.sum()


def covariance(live, adv, rows):
    """(l - mean of the completion's own l) * (A - mean over the completions): (N,)."""
    row = torch.tensor(rows)
    centred = live.clone()
    for i in set(rows):
        centred = torch.where(row == i, live - live[row == i].mean(), centred)
    return centred * (torch.tensor(adv, dtype=torch.float64) - mean_advantage(adv, rows))


def mean_advantage(adv, rows):
    """Mean over completions; a completion's advantage is the mean over its tokens."""
    own = [reference.mean([a for a, j in zip(adv, rows, strict=True) if j == i]) for i in dict.fromkeys(rows)]
    return reference.mean(own)


def flat(adv, rows):
    """Whether all advantages are equal."""
    mean_a = mean_advantage(adv, rows)
    return max(abs(a - mean_a) for a in adv) <= reference.EQUAL_ADVANTAGES


def token_shares(rows, normaliser):
    """What each token counts in the loss: 1 / tokens of its completion, or 1."""
    return [1.0 / rows.count(i) if normaliser == "completion" else 1.0 for i in rows]
