"""The two claims in every regime of the kept studies, as the table in docs/results.md.

    python scripts/claims_table.py                            prints it
    python scripts/claims_table.py --write docs/results.md    puts it between that file's two marks

Each row is a regime: entropy and accuracy on held-out problems at the end of the run (nats; a fraction, sampled at
temperature 0.6), GRPO's mean, and the Gaussian kernel's mean difference to it within seeds with Student's interval.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from page_tables import markdown, run

from covgrpo.studies import read_records, read_study
from covgrpo.studies.analysis import BY_SEED, EVERYWHERE, Cell, analyse
from covgrpo.studies.statistics import Interval, verdict

STUDIES = Path(__file__).parents[1] / "studies"
ORDER = ("main", "stability", "small", "confirm", "ablation", "warm")  # the others repeat runs of main, stability
METHOD = "gaussian"
MARKS = ("<!-- claims: made by scripts/claims_table.py -->\n", "<!-- end of claims -->\n")
HEADER = (
    *("study, regime", "pairs", "entropy, GRPO", "Gaussian - GRPO [Student]", "stays"),
    *("accuracy, GRPO", "Gaussian - GRPO [Student]", "improves"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    return run("claims_table", __doc__, table, MARKS, arguments)


def table() -> str:
    """The table in Markdown."""
    return markdown([list(HEADER), *(row for name in ORDER for row in _rows(name))])


def _rows(name: str) -> Iterator[list[str]]:
    study = read_study(STUDIES / f"{name}.yaml")
    records = read_records(STUDIES / name, study.runs)
    entropies, accuracies = (
        {(cell.regime, cell.method): cell for cell in analyse(study, records, outcome)}
        for outcome in ("entropy_held_out", study.outcome)
    )
    for (regime, method), accuracy in accuracies.items():
        if method == METHOD and regime not in (EVERYWHERE, BY_SEED) and accuracy.difference is not None:
            entropy = entropies[regime, method]
            label = f"{name}{', ' if regime else ''}{regime}" + (" (hard)" if regime in study.hard_regimes else "")
            yield [
                *(label, str(accuracy.difference.n)),
                *_compared(entropies[regime, study.baseline], entropy, None),
                *_compared(accuracies[regime, study.baseline], accuracy, study.margin),
            ]


def _compared(baseline: Cell, cell: Cell, margin: float | None) -> tuple[str, str, str]:
    """The baseline's mean over the seeds that both have, the difference, and what Student's interval says."""
    difference = cell.difference
    if difference is None:
        return "", "", ""
    seeds = [seed for seed in cell.values if seed in baseline.values]
    mean = sum(baseline.values[seed] for seed in seeds) / len(seeds)
    return f"{mean:.3f}", shown(difference), _called(verdict(difference, margin))


def _called(text: str) -> str:
    return text.replace("higher", "**holds**").replace("lower", "**refuted**")


def shown(d: Interval) -> str:
    return f"{d.mean:+.3f} [{d.t_low:+.3f}, {d.t_high:+.3f}]" if d.has_width else f"{d.mean:+.3f}"


if __name__ == "__main__":
    sys.exit(main())
