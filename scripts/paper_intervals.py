"""What the paper's own numbers can show: 95 % intervals of its differences, one sample a problem.

    python scripts/paper_intervals.py

A score over n problems with one sample each is a binomial fraction p, of variance p (1 - p) / n. The difference of two
scores, as if the two runs had answered independently (the paper does not say which problems each solved), has the sum
of both; the average over benchmarks has the sum over them, by the square of their number. Training seeds add to that,
and the paper has one. Scores: arXiv 2605.11538; fractions.
"""

import math

from covgrpo.evaluation.table import COLUMNS, PAPER

PROBLEMS = {"aime24": 30, "math500": 500, "amc23": 40, "minerva": 272, "olympiadbench": 675}
PAIRS = (("1.5b", "grpo"), ("1.5b", "clip_cov"), ("7b", "grpo"))  # with which the kernel is compared
# 1.5B at steps 100, 150, 200; fractions
LATE = {
    "math500": {"grpo": (0.850, 0.820, 0.798), "gaussian": (0.870, 0.862, 0.864)},
    "olympiadbench": {"grpo": (0.499, 0.499, 0.478), "gaussian": (0.520, 0.539, 0.535)},
}
Z = 1.96


def variance(p: float, n: int) -> float:
    return p * (1 - p) / n


def difference(first: float, second: float, n: int) -> tuple[float, float]:
    """Return second - first and the half-width of its interval."""
    return second - first, Z * math.sqrt(variance(first, n) + variance(second, n))


def average_difference(first: tuple[float, ...], second: tuple[float, ...]) -> tuple[float, float]:
    """The same for the averages over all benchmarks."""
    sizes = PROBLEMS.values()
    total = sum(variance(a, n) + variance(b, n) for a, b, n in zip(first, second, sizes, strict=True))
    return (sum(second) - sum(first)) / len(first), Z * math.sqrt(total) / len(first)


def row(what: str, found: tuple[float, float]) -> str:
    """Return a line of the table; it says whether the interval leaves 0 out."""
    value, half = found
    return f"| {what} | {value:+.3f} | ±{half:.3f} | {'yes' if abs(value) > half else 'no'} |"


def table() -> list[str]:
    """Return the lines of the table in docs/paper.md."""
    lines = ["| difference | value | 95 % | 0 left out |", "|---|---|---|---|"]
    for size, other in PAIRS:
        found = average_difference(PAPER[size][other], PAPER[size]["gaussian"])
        lines.append(row(f"{size.upper()}: kernel - {other}, average of five", found))
    for place, (name, n) in enumerate(PROBLEMS.items()):
        pair = PAPER["1.5b"]["grpo"][place], PAPER["1.5b"]["gaussian"][place]
        lines.append(row(f"1.5B: kernel - grpo, {COLUMNS[name]} ({n} problems)", difference(*pair, n)))
    for name, scores in LATE.items():
        late = scores["grpo"][-1], scores["gaussian"][-1]
        lines.append(row(f"1.5B at 200 steps: kernel - grpo, {COLUMNS[name]}", difference(*late, PROBLEMS[name])))
        own = scores["grpo"][0], scores["grpo"][-1]
        lines.append(row(f"1.5B, grpo: 200 - 100 steps, {COLUMNS[name]}", difference(*own, PROBLEMS[name])))
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
