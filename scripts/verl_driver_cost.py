"""Time, memory and bytes of what covgrpo adds to verl's driver, on synthetic batches.

    python scripts/verl_driver_cost.py [TOKENS ...] [--length 1000] [--generations 16] [--padding 0.5]

Rows have LENGTH x (1 - PADDING) valid tokens on average, as completions that end before the longest. CPU seconds of
one thread, medians of 3 after one warm-up; in brackets the weights alone, without metrics, of one group. Memory is the
largest resident memory beside what the batch takes. Default: 1k, 100k and 10M valid tokens.
"""

import argparse
import resource
import statistics
import time
from types import SimpleNamespace

import numpy as np
import torch

from covgrpo.core import get_weighting
from covgrpo.verl import Choice, weigh_batch

# What the driver holds of a position in any case: log-prob, advantage (float32) and mask (int64).
BYTES = 4 + 4 + 8


def batch_of(tokens: int, length: int, generations: int, padding: float) -> SimpleNamespace:
    rows = max(generations, round(tokens / (length * (1 - padding))))
    rows -= rows % generations
    sizes = torch.randint(max(1, round(length * (1 - 2 * padding))), length + 1, (rows,))
    mask = (torch.arange(length)[None] < sizes[:, None]).long()
    advantages = torch.randn(rows, 1) * mask
    batch = {"old_log_probs": -torch.rand(rows, length), "advantages": advantages, "response_mask": mask}
    uids = [f"{i:032x}" for i in range(rows // generations) for _ in range(generations)]
    order = torch.randperm(rows)
    batch = {name: value[order] for name, value in batch.items()}
    return SimpleNamespace(batch=batch, non_tensor_batch={"uid": np.array(uids, dtype=object)[order.numpy()]})


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokens", type=int, nargs="*", default=[1_000, 100_000, 10_000_000])
    parser.add_argument("--length", type=int, default=1000)
    parser.add_argument("--generations", type=int, default=16)
    parser.add_argument("--padding", type=float, default=0.5)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print("  valid tokens    rows   held MB   extra MB   CPU s   (weights)   ns/position")
    for tokens in options.tokens:
        length = min(options.length, max(8, tokens // 16))
        data = batch_of(tokens, length, options.generations, options.padding)
        choice = Choice("gaussian", get_weighting("gaussian"))
        positions = data.batch["response_mask"].numel()
        original = data.batch["advantages"]
        before, whole, weights = peak_bytes(), [], []
        group = torch.zeros(len(original), dtype=torch.long)
        for _ in range(4):
            data.batch["advantages"] = original
            started = time.process_time()
            weigh_batch(data, choice)
            whole.append(time.process_time() - started)
            started = time.process_time()
            choice.weighting(data.batch["old_log_probs"], original, data.batch["response_mask"], group)
            weights.append(time.process_time() - started)
        seconds, alone = statistics.median(whole[1:]), statistics.median(weights[1:])
        valid = int(data.batch["response_mask"].sum())
        print(
            f"{valid:>14,}{len(original):>8,}{positions * BYTES / 1e6:>10.1f}{(peak_bytes() - before) / 1e6:>11.1f}"
            f"{seconds:>10.4f} ({alone:.4f}){seconds / positions * 1e9:>14.1f}"
        )


if __name__ == "__main__":
    main()
