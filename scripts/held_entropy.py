"""How well runs hold their entropy: the table of docs/entropy.md, from kept records.

    python scripts/held_entropy.py                            prints it
    python scripts/held_entropy.py --write docs/entropy.md    puts it between that file's two marks

Means of 25 steps of the rollouts' entropy, as fractions of the mean of the first 10 steps, which is the target of
`hold_entropy`. "lowest, highest": of all such means that end at step 75 to the last, over all runs; then how many of
these lie within a tenth of the target.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from page_tables import markdown, run

from covgrpo.errors import UserError
from covgrpo.studies import Record, read_records, read_study

STUDIES = Path(__file__).parents[1] / "studies"
# Study -> what the table calls one without regimes.
HELD = {"hold": "", "hold-sums-16": "sums, 16 prompts", "hold-sums-32": "sums, 32 prompts"}
TARGET_STEPS, WINDOW, SETTLED, TOLERANCE = 10, 25, 50, 0.1
COLUMNS = (50, 100, 200, 300, 400, 500)
MARKS = ("<!-- held: made by scripts/held_entropy.py -->\n", "<!-- end of held -->\n")


def main(arguments: Sequence[str] | None = None) -> int:
    return run("held_entropy", __doc__, tables, MARKS, arguments)


def tables() -> str:
    """The table in Markdown.

    Raises:
        UserError: a study or a record that cannot be read, or a run of another length.
    """
    found: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for name, task in HELD.items():
        records: Mapping[str, Record] = read_records(STUDIES / name, read_study(STUDIES / f"{name}.yaml").runs)
        for record in records.values():
            found[record.regime or task, record.method].append(record)
    return markdown(_rows(found))


def _rows(found: Mapping[tuple[str, str], list[Record]]) -> Iterator[list[str]]:
    yield ["task", "method", "runs", *(f"step {step}" for step in COLUMNS), "lowest, highest", "within a tenth"]
    for (task, method), records in found.items():
        runs = [windows(_entropy(record)) for record in records]
        means = [f"{fmean(run[step] for run in runs):.2f}" for step in COLUMNS]
        settled = [value for run in runs for step, value in run.items() if step > SETTLED]
        ends = [f"{min(settled):.2f}, {max(settled):.2f}", f"{_within(settled)} of {len(settled)}"]
        yield [task, f"`{method}`", str(len(runs)), *means, *ends]


def _within(means: Sequence[float]) -> int:
    return sum(abs(mean - 1) <= TOLERANCE for mean in means)


def _entropy(record: Record) -> list[float]:
    entropy = [value for value in record.curves["entropy"] if value is not None]
    if len(entropy) != COLUMNS[-1]:
        needed = f"{COLUMNS[-1]} steps with a finite entropy are needed, {len(entropy)} were found"
        raise UserError(f"{record.regime} {record.method}, seed {record.seed}: {needed}.")
    return entropy


def windows(entropy: Sequence[float]) -> dict[int, float]:
    """Last step of each window -> its mean as a fraction of the target."""
    target = fmean(entropy[:TARGET_STEPS])
    ends = range(WINDOW, len(entropy) + 1, WINDOW)
    return {end: fmean(entropy[end - WINDOW : end]) / target for end in ends}


if __name__ == "__main__":
    sys.exit(main())
