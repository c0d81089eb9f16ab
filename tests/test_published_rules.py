"""Clip-Cov and KL-Cov as published, where one micro-batch holds everything."""

import pytest
import torch
from core_cases import (
    F64,
    SEEDS,
    close,
    sample_batch,
)

from covgrpo import get_weighting
from covgrpo.core.noise import token_noise

# --- the published rules, where one micro-batch holds everything ------------------------------------------


#
# The losses of Clip-Cov and KL-Cov by verl's rules, in a few lines: statistics over all valid tokens of the tensors at
# hand, with the log-probs of the current policy. At the first update of a rollout batch ours are given the same.
def token_mean(losses, mask):
    return losses[mask].mean()


def published_covariance(logps, advantages, mask):
    lp = logps.detach()
    return (advantages - token_mean(advantages, mask)) * (lp - token_mean(lp, mask))


def published_candidates(logps, old, advantages, mask, ratio, low, high, clip):
    """The tokens to draw from, and how many to draw."""
    surrogate, clipped = surrogates(logps, old, advantages, clip)
    c = published_covariance(logps, advantages, mask)
    candidates = (c > low) & (c < high) & mask & ~(clipped > surrogate)
    return candidates, max(int(ratio * mask.sum().item()), 1)


def surrogates(logps, old, advantages, clip):
    """PPO's two losses of each token."""
    r = torch.exp(logps - old)
    return -advantages * r, -advantages * torch.clamp(r, 1 - clip, 1 + clip)


def published_clip_cov_loss(logps, old, advantages, mask, drawn, clip):
    losses = torch.maximum(*surrogates(logps, old, advantages, clip))
    return token_mean(losses * (~drawn).to(losses), mask)


def published_kl_cov_loss(logps, old, advantages, mask, ratio, coef):
    """The loss and the tokens that carry the penalty."""
    c = published_covariance(logps, advantages, mask)
    where = mask.nonzero()[c[mask].topk(max(1, int(mask.sum().item() * ratio))).indices]
    selected = torch.zeros_like(mask)
    selected[where[:, 0], where[:, 1]] = True
    d = logps - old
    losses = -advantages * torch.exp(d)
    losses = torch.where(selected, losses + coef * d.abs(), losses)
    return token_mean(losses, mask), selected


def weighted_loss(logps, old, advantages, mask, clip):
    """TRL's loss, which takes advantages of every token."""
    r = torch.exp(logps - old)
    clipped = torch.clamp(r, 1 - clip, 1 + clip)
    return token_mean(-torch.minimum(r * advantages, clipped * advantages), mask)


def micro_batch(seed, dtype, step):
    """(old, logps, A (B, T), mask): a ragged batch, and the log-probs after a random step of that size."""
    inputs = sample_batch(seed, sizes=(24,), width=20).to(dtype)
    torch.manual_seed(seed)
    old = inputs.logps
    logps = (old + step * torch.randn(old.shape, dtype=dtype)).requires_grad_()
    return old, logps, inputs.advantages[:, None].expand(old.shape), inputs.mask


PUBLISHED = pytest.mark.parametrize(("dtype", "rtol"), [(F64, 1e-12), (torch.float32, 1e-5)])


CLIP_COV = pytest.mark.parametrize(
    ("ratio", "low", "high"), [(0.0002, 1.0, 5.0), (0.01, 1.0, 5.0), (0.1, 0.5, 1.0), (0.5, -0.2, 0.2)]
)


@PUBLISHED
@CLIP_COV
@SEEDS
def test_clip_cov_draws_from_the_published_candidates(seed, ratio, low, high, dtype, rtol):
    old, logps, advantages, mask = micro_batch(seed, dtype, step=0.0)
    candidates, number = published_candidates(logps, old, advantages, mask, ratio, low, high, clip=1.0)
    everything = get_weighting("clip_cov", ratio=1.0, low=low, high=high)(old, advantages, mask)
    assert torch.equal(mask & (everything == 0), candidates)
    for draw in range(5):
        noise = token_noise(draw, torch.arange(len(mask)), mask.shape[1])
        drawn = mask & (
            get_weighting("clip_cov", ratio=ratio, low=low, high=high)(old, advantages, mask, None, noise) == 0
        )
        assert not (drawn & ~candidates).any()
        assert drawn.sum() == min(number, candidates.sum())


@PUBLISHED
@SEEDS
@pytest.mark.parametrize("clip", [1.0, 0.2])
@pytest.mark.parametrize("step", [0.0, 0.3])
def test_clip_cov_has_the_published_loss_and_gradient(seed, step, clip, dtype, rtol):
    old, logps, advantages, mask = micro_batch(seed, dtype, step)
    weights = get_weighting("clip_cov", ratio=0.1, low=0.2, high=2.0)(old, advantages, mask)
    drawn = mask & (weights == 0)
    assert drawn.any()
    ours = weighted_loss(logps, old, advantages * weights, mask, clip)
    published = published_clip_cov_loss(logps, old, advantages, mask, drawn, clip)
    close(ours, published.detach(), rtol=rtol, atol=1e-7 if dtype == torch.float32 else 1e-14)
    (our_gradient,) = torch.autograd.grad(ours, logps)
    (gradient,) = torch.autograd.grad(published, logps)
    close(our_gradient, gradient, rtol=rtol)
    assert not gradient[drawn].any() and gradient.any()


@PUBLISHED
@SEEDS
@pytest.mark.parametrize(("ratio", "coef"), [(0.002, 1.0), (0.0002, 0.1), (0.2, 1.0), (1.0, 0.5)])
@pytest.mark.parametrize("step", [0.0, 0.3])
def test_kl_cov_has_the_published_tokens_loss_and_gradient(seed, step, ratio, coef, dtype, rtol):
    # The trainer gives `penalties` the log-probs of the rollout; here the current ones, as published.
    old, logps, advantages, mask = micro_batch(seed, dtype, step)
    penalties = get_weighting("kl_cov", ratio=ratio, coef=coef).penalties(logps, advantages, mask)
    published, selected = published_kl_cov_loss(logps, old, advantages, mask, ratio, coef)
    assert torch.equal(penalties > 0, selected)
    # -r A' = -r A + coef |d| for A' = A - coef |d| / r
    d = logps - old
    r = torch.exp(d)
    ours = token_mean(-r * (advantages - penalties * d.abs() / r), mask)
    close(ours, published.detach(), rtol=rtol, atol=1e-7 if dtype == torch.float32 else 1e-14)
    (our_gradient,) = torch.autograd.grad(ours, logps)
    (gradient,) = torch.autograd.grad(published, logps)
    close(our_gradient, gradient, rtol=rtol, atol=1e-8 if dtype == torch.float32 else 1e-15)


@SEEDS
def test_kl_covs_penalty_needs_the_ratio_undetached(seed):
    # The identity holds for value and gradient; with r detached in A' the value holds, the gradient does not.
    old, logps, advantages, mask = micro_batch(seed, F64, step=0.3)
    penalties = get_weighting("kl_cov", ratio=0.2).penalties(logps, advantages, mask)
    published, _ = published_kl_cov_loss(logps, old, advantages, mask, 0.2, 1.0)
    d = logps - old
    r = torch.exp(d)
    detached = token_mean(-r * (advantages - (penalties * d.abs() / r).detach()), mask)
    close(detached, published.detach())
    (broken,), (gradient,) = torch.autograd.grad(detached, logps), torch.autograd.grad(published, logps)
    assert (broken - gradient).abs().max() > 0.1 * gradient.abs().max()


@SEEDS
def test_kl_cov_is_inert_on_policy(seed):
    old, logps, advantages, mask = micro_batch(seed, F64, step=0.0)
    loss, selected = published_kl_cov_loss(logps, old, advantages, mask, 0.2, 1.0)
    plain = weighted_loss(logps, old, advantages, mask, clip=1e6)
    assert selected.any()
    close(loss.detach(), plain.detach(), rtol=0, atol=0)
    (gradient,), (stock,) = torch.autograd.grad(loss, logps), torch.autograd.grad(plain, logps)
    close(gradient, stock, rtol=0, atol=0)
