"""Time and memory of the weights themselves.

    python scripts/weights_cost.py [GROUPS GENERATIONS TOKENS]

Medians of 5 after one warm-up; memory is the largest resident memory beside what the inputs take, as a fraction of the
inputs (log-probs, mask, advantages, group ids). Default: 10 million tokens in 10,000 groups.
The other schemes run in turn with ``gaussian``; ratios are medians of 5.
"""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from covgrpo.core import gaussian_weights, get_weighting

OTHERS = {
    "gaussian_through": get_weighting("gaussian_through"),
    "gaussian_through, padded mean": get_weighting("gaussian_through", padded_mean=True),
    "neutral": get_weighting("neutral"),
    "neutral, kappa 4": get_weighting("neutral", kappa=4.0),
}


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(groups: int = 10_000, generations: int = 10, length: int = 100) -> None:
    torch.manual_seed(0)
    rows = groups * generations
    logps = -torch.rand(rows, length)
    mask = torch.ones(rows, length, dtype=torch.bool)
    advantages, ids = torch.randn(rows), torch.arange(groups).repeat_interleave(generations)
    ids = ids[torch.randperm(rows)]
    given = sum(x.numel() * x.element_size() for x in (logps, mask, advantages, ids))
    gaussian_weights(logps[:100], advantages[:100], mask[:100], ids[:100])
    before, times = peak_bytes(), []
    for _ in range(6):
        start = time.perf_counter()
        gaussian_weights(logps, advantages, mask, ids)
        times.append(time.perf_counter() - start)
    print(f"tokens           {rows * length:,} in {groups:,} groups")
    print(f"seconds          {statistics.median(times[1:]):.4f} ({min(times[1:]):.4f} to {max(times[1:]):.4f})")
    own = 4 * rows * length
    print(f"memory / inputs  {(peak_bytes() - before) / given:.2f} (the weights themselves: {own / given:.2f})")
    for name, scheme in OTHERS.items():
        for scope, scope_ids in (("group", ids), ("batch", None)):
            ratio = time_ratio(scheme, gaussian_weights, logps, advantages, mask, scope_ids)
            print(f"{name}, scope {scope}: {ratio:.2f} x gaussian", flush=True)


def time_ratio(function: Callable, other: Callable, *arguments: Any) -> float:
    """Median of 5 ratios of the times of two functions that run in turn, after a warm-up."""
    ratios = []
    for _ in range(6):
        times = []
        for run in (function, other):
            start = time.perf_counter()
            run(*arguments)
            times.append(time.perf_counter() - start)
        ratios.append(times[0] / times[1])
    return statistics.median(ratios[1:])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
