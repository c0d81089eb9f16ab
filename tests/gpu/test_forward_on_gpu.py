"""The shared forward pass on the accelerator, against each row forwarded alone."""

import pytest
import torch
from tiny import tiny_model
from trl_runs import relative

from covgrpo.forward import SharedPrompts, sharing_prompts

pytestmark = pytest.mark.gpu

LENGTHS = {  # of the prompts: padded ones need a mask, equal ones go through other kernels
    "ragged": (5, 40, 17),
    "equal": (24, 24, 24),
    "alone": (33,),
}


def rows_of(lengths: tuple[int, ...], common: int) -> list[tuple[list[int], list[int]]]:
    generator = torch.Generator().manual_seed(0)
    draw = lambda n: torch.randint(3, 90, (n,), generator=generator).tolist()  # noqa: E731
    prefix = draw(common)
    return [(prefix + own, draw(n)) for own in map(draw, lengths) for n in (1, 9, 30, 64)]


def batch_of(rows: list[tuple[list[int], list[int]]], device: torch.device) -> SharedPrompts:
    longest, width = (max(map(len, part)) for part in zip(*rows, strict=True))
    gaps = [(longest - len(p), width - len(c)) for p, c in rows]
    ids = [[0] * a + p + c + [0] * b for (a, b), (p, c) in zip(gaps, rows, strict=True)]
    mask = [[0] * a + [1] * len(p + c) + [0] * b for (a, b), (p, c) in zip(gaps, rows, strict=True)]
    return SharedPrompts.from_rows(torch.tensor(ids, device=device), torch.tensor(mask, device=device), width)


def gradient(model: torch.nn.Module, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    (hidden.float() * weight).sum().backward()
    return torch.cat([p.grad.flatten().float() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("common", [0, 20])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_shared_tokens_change_no_hidden_state_and_no_gradient(device, lengths, common, checkpointing, autocast):
    """In float32 to rounding; under bfloat16 autocast no further from float32 than separate rows are, twice over."""
    model = tiny_model(scale=2.0, hidden_size=128, num_attention_heads=8, num_hidden_layers=3).to(device)
    rows = rows_of(LENGTHS[lengths], common)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()

    def alone() -> torch.Tensor:
        parts = [model.model(torch.tensor([p + c], device=device)).last_hidden_state for p, c in rows]
        return torch.cat([part[0, len(p) - 1 : -1] for part, (p, _) in zip(parts, rows, strict=True)])

    exact = alone()
    weight = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1)).to(device)
    exact_gradient = gradient(model, exact, weight)
    bounds = (1e-5, 1e-4)
    if autocast:
        with torch.autocast(device.type, torch.bfloat16):
            separate = alone()
        bounds = (2 * relative(separate, exact), 2 * relative(gradient(model, separate, weight), exact_gradient))
    with sharing_prompts(model.model), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        hidden = model.model(shared_prompt=batch_of(rows, device)).last_hidden_state[0]
    assert relative(hidden, exact) < bounds[0]
    assert relative(gradient(model, hidden, weight), exact_gradient) < bounds[1]
