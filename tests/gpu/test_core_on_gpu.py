"""The core on the accelerator: the CPU's numbers, wherever the tensors are."""

import pytest
import torch

from covgrpo.core import WEIGHTINGS, get_weighting, token_covariance
from covgrpo.core.noise import token_noise

pytestmark = pytest.mark.gpu


def batch(seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    B, T, G = 96, 40, 12
    logps = -torch.rand(B, T, generator=generator).mul(3).square()
    advantages = torch.randn(B, generator=generator)
    mask = torch.arange(T)[None] < torch.randint(1, T + 1, (B, 1), generator=generator)
    return logps, advantages, mask, (torch.arange(B) // G)[torch.randperm(B, generator=generator)]


@pytest.mark.parametrize("name", sorted(WEIGHTINGS))
def test_every_weighting_is_the_cpus(device, name):
    """Sums on a GPU have another order, in float64; a token that a draw picks is the same."""
    logps, advantages, mask, group = batch()
    weighting = get_weighting(name)
    if hasattr(weighting, "normaliser"):
        weighting = get_weighting(name, normaliser="token")
    noise = [token_noise(0, torch.arange(len(logps)), logps.shape[1])] if hasattr(weighting, "needs_noise") else []
    expected = weighting(logps, advantages, mask, group, *noise)
    moved = [value.to(device) for value in (logps, advantages, mask, group, *noise)]
    found = weighting(*moved)
    assert found.device.type == device.type
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-6)


def test_covariance_in_bf16_is_the_cpus_of_the_same_numbers(device):
    logps, advantages, mask, group = batch(1)
    low = logps.bfloat16()
    expected = token_covariance(low, advantages, mask, group)
    found = token_covariance(low.to(device), advantages.to(device), mask.to(device), group.to(device))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-6, atol=1e-7)


def test_what_lies_under_the_mask_touches_nothing(device):
    logps, advantages, mask, group = (value.to(device) for value in batch(2))
    poisoned = torch.where(mask, logps, torch.nan)
    weigh = get_weighting("gaussian")
    assert torch.equal(weigh(poisoned, advantages, mask, group), weigh(logps, advantages, mask, group))


def test_noise_is_the_same_on_every_device(device):
    rows = torch.arange(50)
    assert torch.equal(token_noise(3, rows.to(device), 20).cpu(), token_noise(3, rows, 20))
