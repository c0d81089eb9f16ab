"""Floating-point operations: what a step needs, and what the machine can do."""

import time
from collections.abc import Sequence
from typing import Any

_SIZE = 2048


def useful_operations(
    prompt_lengths: Sequence[int],
    completion_lengths: Sequence[int],
    has_advantage: Sequence[bool],
    model: dict[str, int],
) -> float:
    """Operations that a step cannot do without, the same number for both sides.

    A matrix product with a weight matrix of n entries takes 2n operations a token forward and 4n backward; attention
    of one query on k keys takes 4k operations for each of layers x hidden size. Sampling forwards each prompt once and
    each completion token once; the update forwards and differentiates the same for groups that have an advantage.
    The vocabulary head is counted for completion tokens only.

    Args:
        prompt_lengths: of the P prompts, in tokens.
        completion_lengths: of the P x G completions, group after group.
        has_advantage: of the P groups.
        model: body_weights, head_weights and attention_width (layers x hidden size).

    """
    generations = len(completion_lengths) // len(prompt_lengths)
    total = 0.0
    for group, (prompt, active) in enumerate(zip(prompt_lengths, has_advantage, strict=True)):
        lengths = completion_lengths[group * generations : (group + 1) * generations]
        tokens = sum(lengths)
        keys = prompt * (prompt + 1) / 2 + sum(length * prompt + length * (length + 1) / 2 for length in lengths)
        weights = model["body_weights"] * (prompt + tokens) + model["head_weights"] * tokens
        forward = 2 * weights + 4 * model["attention_width"] * keys
        total += forward * (4 if active else 1)
    return total


def matmul_peak(bf16: bool, threads: int, repeats: int = 7) -> float:
    """Operations a second of a large square matrix product in the dtype of the step; the best of several."""
    import torch

    dtype = torch.bfloat16 if bf16 else torch.float32
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a = torch.randn(_SIZE, _SIZE, device=device).to(dtype)
        best = min(_seconds(a) for _ in range(repeats))
    finally:
        torch.set_num_threads(before)
    return 2 * _SIZE**3 / best


def _seconds(a: Any) -> float:
    started = time.perf_counter()
    (a @ a)[0, 0].item()  # waits for the device
    return time.perf_counter() - started
