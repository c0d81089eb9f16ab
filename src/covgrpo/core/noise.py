"""Random numbers that belong to a token, not to a place in memory.

A scheme that picks tokens at random must pick the same ones whatever the micro-batch, padding, order of rows or number
of processes. So each number is a hash of (seed, row, position): a counter-based generator in the manner of SplitMix64
(Steele, Lea, Flood, OOPSLA 2014).
"""

import torch
from torch import Tensor

_GAMMA, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def token_noise(seed: int, rows: Tensor, length: int) -> Tensor:
    """Uniform numbers in [0, 1), one a token.

    Args:
        seed: of the run and its rollout batch.
        rows: (B,) integers that identify the rows.
        length: T.

    Returns:
        (B, T) float64 (float32 on devices without float64); entry (i, t) depends on seed, rows[i] and t alone.

    """
    # The seed is mixed by itself: added to the row, seed s and row i would be seed s + 1 and row i - 1.
    seed_key = _mix(torch.tensor(_signed((seed + 1) * _GAMMA), device=rows.device))
    row_keys = _mix(seed_key + rows.long() * _signed(_GAMMA))
    positions = torch.arange(1, length + 1, device=rows.device)
    bits = _mix(row_keys[:, None] + positions[None] * _signed(_GAMMA))
    if rows.device.type == "mps":
        return _shift(bits, 40).float() * 2.0**-24
    return _shift(bits, 11).double() * 2.0**-53


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64, whose products wrap as unsigned ones do."""
    x = (x ^ _shift(x, 30)) * _signed(_MIX_1)
    x = (x ^ _shift(x, 27)) * _signed(_MIX_2)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right without the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value
