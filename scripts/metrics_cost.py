"""Time of a step's token metrics and records: what is added to every optimizer step.

    python scripts/metrics_cost.py [ROWS LENGTH ...]

Medians of 5, for 128 completions of 5 tokens (the demo's step takes over a second) and for 48 of 4,096.
"""

import statistics
import sys
import time

import torch

from covgrpo.metrics import StepTokens, most_damped, summarise
from covgrpo.metrics.tokens import covariance_of
from covgrpo.runs.record.token_records import histogram_record


def step_tokens(rows: int, length: int, generations: int = 12) -> StepTokens:
    torch.manual_seed(0)
    n = rows * length
    row = torch.arange(rows).repeat_interleave(length)
    logps, advantages = -torch.rand(n), torch.randn(rows)[row]
    group = row // generations
    return StepTokens(
        row=row,
        group=group,
        position=torch.arange(length).repeat(rows),
        token=torch.randint(1000, (n,)),
        logps=logps,
        advantages=advantages,
        weights=torch.rand(n),
        c=covariance_of(logps, advantages, group),
        entropies=torch.rand(n),
    )


def main(*sizes: int) -> None:
    pairs = list(zip(sizes[::2], sizes[1::2], strict=True)) or [(128, 5), (48, 4096)]
    for rows, length in pairs:
        tokens = step_tokens(rows, length)
        parts = {
            "metrics": lambda tokens=tokens: summarise(tokens),
            "histograms": lambda tokens=tokens: histogram_record(1, tokens),
            "most damped": lambda tokens=tokens: most_damped(tokens, 16),
        }
        for name, function in parts.items():
            times = []
            for _ in range(6):
                start = time.perf_counter()
                function()
                times.append(time.perf_counter() - start)
            print(f"{rows:>4} x {length:<5} {name:<12} {1000 * statistics.median(times[1:]):.2f} ms")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
