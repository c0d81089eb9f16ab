"""One method of a study against each of the others, as tables of the docs.

    python scripts/against_table.py floor "floor 0.75"                            prints them
    python scripts/against_table.py floor "floor 0.75" --write docs/results.md    puts them between that file's marks
    python scripts/against_table.py hold grpo                                     against the baseline alone
    python scripts/against_table.py candidates                                    the means alone
    python scripts/against_table.py traces-late --steps                           the means at each evaluation

First each method's means over its seeds, at the end of the run. Then its mean difference to the study's baseline, and
to the named method, within the seeds that both have, with Student's 95 % interval. Accuracies and pass@k are fractions
of held-out problems, entropies nats.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from claims_table import shown
from page_tables import markdown, show

from covgrpo.errors import UserError
from covgrpo.studies import Record, Study, read_records, read_study
from covgrpo.studies.analysis import Cell, analyse

STUDIES = Path(__file__).parents[1] / "studies"
COLUMNS = {
    "accuracy at 0.6": "accuracy@0.6",
    "pass@16 at 1.0": "pass16@1",
    "maj@16 at 0.6": "maj16@0.6",
    "entropy": "entropy_held_out",
}
# Of studies that name them among their outcomes.
HARDER = {"harder problems, accuracy": "harder_accuracy@0.6", "harder problems, pass@16": "harder_pass16@1"}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="name of a file in studies/")
    parser.add_argument("method", nargs="?", help="its name in the study; without one: the means alone")
    parser.add_argument("--steps", action="store_true", help="the means at each evaluation, not at the end alone")
    parser.add_argument("--write", metavar="FILE", help="file with the two marks between which the tables go")
    args = parser.parse_args(arguments)
    make = partial(tables, args.study, args.method, args.steps)
    return show("against_table", make, marks(args.study), args.write)


def marks(study: str) -> tuple[str, str]:
    """The lines between which a study's tables stand."""
    return f"<!-- {study}: made by scripts/against_table.py -->\n", f"<!-- end of {study} -->\n"


def tables(name: str, method: str | None = None, steps: bool = False) -> str:
    """The three tables in Markdown; without a method the first alone, with ``steps`` at each evaluation.

    Raises:
        UserError: no such study, or it has no such method.
    """
    study = read_study(STUDIES / f"{name}.yaml")
    if method is not None and method not in study.methods:
        raise UserError(f"study {name} has no method {method!r}; it has {', '.join(study.methods)}.")
    records = read_records(STUDIES / name, study.runs)
    others = [] if method is None else list(dict.fromkeys((study.baseline, method)))
    first = _means_at_each_step(study, records) if steps else _means(study, records)
    return "\n".join(map(markdown, [first, *(_minus(study, records, other) for other in others)]))


def _columns(study: Study) -> dict[str, str]:
    """Column -> outcome."""
    return COLUMNS | {column: outcome for column, outcome in HARDER.items() if outcome in study.secondary}


def _cells(study: Study, records: Mapping[str, Record]) -> dict[tuple[str, str], dict[str, Cell]]:
    """Regime and method -> column -> cell."""
    found: dict[tuple[str, str], dict[str, Cell]] = {}
    for column, outcome in _columns(study).items():
        for cell in analyse(study, records, outcome):
            if cell.regime in study.regimes:
                found.setdefault((cell.regime, cell.method), {})[column] = cell
    return found


def _means(study: Study, records: Mapping[str, Record]) -> Iterator[list[str]]:
    columns, several = _columns(study), len(study.regimes) > 1
    yield [*(["regime"] if several else []), "method", "seeds", *columns]
    for (regime, method), cells in _cells(study, records).items():
        means = [f"{cells[column].own.mean:.3f}" if column in cells else "" for column in columns]
        yield [*([regime] if several else []), method, str(max(cell.own.n for cell in cells.values())), *means]


def _means_at_each_step(study: Study, records: Mapping[str, Record]) -> Iterator[list[str]]:
    """The outcomes of the records as they were after each evaluation; between the first and the last without maj@16."""
    for i, step in enumerate(sorted({entry["step"] for record in records.values() for entry in record.evaluations})):
        until = {
            name: dataclasses.replace(record, evaluations=[e for e in record.evaluations if e["step"] <= step])
            for name, record in records.items()
        }
        header, *rows = _means(study, until)
        yield from ([["step", *header]] if i == 0 else [])
        yield from ([str(step), *row] for row in rows)


def _minus(study: Study, records: Mapping[str, Record], other: str) -> Iterator[list[str]]:
    columns, several = _columns(study), len(study.regimes) > 1
    yield [*(["regime"] if several else []), f"minus {other} [Student]", "pairs", *columns]
    for (regime, method), cells in _cells(dataclasses.replace(study, baseline=other), records).items():
        differences = {column: cell.difference for column, cell in cells.items() if cell.difference is not None}
        if differences:
            shown_ones = [shown(differences[column]) if column in differences else "" for column in columns]
            pairs = str(max(found.n for found in differences.values()))
            yield [*([regime] if several else []), method, pairs, *shown_ones]


if __name__ == "__main__":
    sys.exit(main())
