"""Counts of covariances and weights in fixed bins, so that steps and runs can be laid side by side."""

import torch
from torch import Tensor

from covgrpo.metrics.tokens import StepTokens

_SERIES = tuple(digit * 10.0**power for power in (-2, -1, 0, 1) for digit in (1, 2, 5))  # 0.01 to 50
COVARIANCE_EDGES = (*(-edge for edge in reversed(_SERIES)), 0.0, *_SERIES)
# fine from 0 to 2, where nearly all weights lie; coarse beyond, to -1 and 3
WEIGHT_EDGES = (-1.0, -0.75, -0.5, -0.25, *(i / 20 for i in range(41)), 2.25, 2.5, 2.75, 3.0)


def histograms(tokens: StepTokens) -> dict[str, list[int] | int]:
    """Count the tokens of groups that have an advantage.

    Returns:
        ``c``: counts below the first edge of ``COVARIANCE_EDGES``, between neighbours (the lower edge included), and
        from the last one on. ``weight``: likewise with ``WEIGHT_EDGES``. ``idle``: tokens of zero advantage, which are
        in neither.

    """
    active = tokens.advantages != 0
    return {
        "c": _counts(tokens.c[active], COVARIANCE_EDGES),
        "weight": _counts(tokens.weights[active], WEIGHT_EDGES),
        "idle": int((~active).sum()),
    }


def _counts(values: Tensor, edges: tuple[float, ...]) -> list[int]:
    values = values[values.isfinite()].double()
    bounds = torch.tensor(edges, dtype=torch.float64, device=values.device)
    counts: list[int] = torch.bincount(torch.bucketize(values, bounds, right=True), minlength=len(edges) + 1).tolist()
    return counts
