"""What the two readings of the Gaussian kernel leave of rare tokens: the table of docs/methods.md.

python scripts/two_readings.py     # 2 s

Groups of 12 completions of 200 tokens, log-probs drawn with a heavy tail over a mass of nearly certain tokens: four
tokens in five have -l ~ exponential of mean 0.02, the others of mean 1.5. Rewards 0 and 1, r of 12 right, advantages as
GRPO's. A token is rare if l < -1.
"""

import torch
from torch import Tensor

from covgrpo import gaussian_through_weights, gaussian_weights

G, T, GROUPS = 12, 200, 100
RARE = -1.0
READINGS = {"as written (`gaussian`)": gaussian_weights, "as run (`gaussian_through`)": gaussian_through_weights}


def main() -> int:
    """Print the table."""
    print("\n".join(table()))
    return 0


def table() -> list[str]:
    """The lines of the table, in Markdown: mean weights of tokens by kind and reading, and the share below 0."""
    lines = [
        "| right of 12 | reading | rare, right | rare, wrong | others, right | others, wrong | reversed |",
        "|---|---|---|---|---|---|---|",
    ]
    for right in (1, 3, 6, 9, 11):
        logps, advantages, mask, ids = groups(right)
        rare, wins = logps < RARE, advantages[:, None] > 0
        for name, weigh in READINGS.items():
            w = weigh(logps, advantages, mask, ids)
            kinds = (rare & wins, rare & ~wins, ~rare & wins, ~rare & ~wins)
            cells = [f"{w[kind].mean():.2f}" for kind in kinds]
            lines.append(f"| {right} | {name} | {' | '.join(cells)} | {(w < 0).double().mean():.3f} |")
    return lines


def groups(right: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probs (B, T), advantages (B,), mask (B, T) and group ids (B,) of 100 groups, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    exponential = -torch.rand(GROUPS * G, T, generator=generator, dtype=torch.float64).log()
    common = torch.rand(GROUPS * G, T, generator=generator) < 0.8
    logps = -exponential * torch.where(common, 0.02, 1.5)
    rewards = (torch.arange(G) < right).double()
    advantages = ((rewards - rewards.mean()) / rewards.std()).repeat(GROUPS)
    return logps, advantages, torch.ones_like(common), torch.arange(GROUPS).repeat_interleave(G)


if __name__ == "__main__":
    raise SystemExit(main())
