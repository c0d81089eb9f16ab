"""One method of a study against each of the others, as two tables of docs/results.md.

    python scripts/against_table.py floor "floor 0.75"                            prints them
    python scripts/against_table.py floor "floor 0.75" --write docs/results.md    puts them between that file's marks

First every method against the baseline: means at the end of the run over its seeds, and mean differences within seeds
with Student's 95 % interval. Then the named method minus every other one, over the seeds that both have. Accuracies and
pass@k are fractions of held-out problems, entropies nats.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from claims_table import inserted, shown

from covgrpo.errors import UserError
from covgrpo.studies import Study, read_records, read_study
from covgrpo.studies.analysis import outcome_values
from covgrpo.studies.statistics import interval

STUDIES = Path(__file__).parents[1] / "studies"
# column -> outcome
COMPARED = {"accuracy at 0.6": "accuracy@0.6", "pass@16 at 1.0": "pass16@1", "maj@16 at 0.6": "maj16@0.6"}
ENTROPY = "entropy_held_out"

Values = Mapping[int, float]  # by seed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="name of a file in studies/")
    parser.add_argument("method", help="its name in the study")
    parser.add_argument("--write", metavar="FILE", help="file with the two marks between which the tables go")
    args = parser.parse_args(arguments)
    try:
        text = tables(args.study, args.method)
        if args.write is None:
            print(text, end="")
        else:
            path = Path(args.write)
            page = inserted(path.read_text(encoding="utf-8"), text, marks(args.study))
            path.write_text(page, encoding="utf-8")
    except (OSError, UserError) as error:
        print(f"against_table: {error}", file=sys.stderr)
        return 2
    return 0


def marks(study: str) -> tuple[str, str]:
    """The lines between which a study's tables stand."""
    return f"<!-- {study}: made by scripts/against_table.py -->\n", f"<!-- end of {study} -->\n"


def tables(name: str, method: str) -> str:
    """Both tables in Markdown.

    Raises:
        UserError: no such study, or the study has several regimes or no such method.
    """
    study = read_study(STUDIES / f"{name}.yaml")
    if len(study.regimes) != 1 or method not in study.methods:
        raise UserError(f"study {name}: one regime and a method {method!r} are needed; it has {_held(study)}.")
    records = read_records(STUDIES / name, study.runs)
    values = {
        outcome: {found: of_seed for (_, found), of_seed in outcome_values(records, outcome).items()}
        for outcome in (*COMPARED.values(), ENTROPY)
    }
    return "\n".join([_markdown(_to_baseline(study, values)), _markdown(_to_others(study, values, method))])


def _to_baseline(study: Study, values: Mapping[str, Mapping[str, Values]]) -> Iterator[list[str]]:
    columns = [part for name in COMPARED for part in (name, f"- {study.baseline} [Student]")]
    yield ["method", "seeds", "entropy", *columns]
    for method in study.methods:
        entropy = values[ENTROPY].get(method, {})
        if not entropy:
            continue
        row = [method, str(len(entropy)), _mean(entropy)]
        for outcome in COMPARED.values():
            mine = values[outcome].get(method, {})
            row += [
                _mean(mine),
                "" if method == study.baseline else _difference(mine, values[outcome].get(study.baseline, {})),
            ]
        yield row


def _to_others(study: Study, values: Mapping[str, Mapping[str, Values]], method: str) -> Iterator[list[str]]:
    yield [f"{method} minus", "pairs", *COMPARED, "entropy"]
    for other in study.methods:
        pairs = values[ENTROPY].get(other, {}).keys() & values[ENTROPY].get(method, {}).keys()
        if other != method and pairs:
            outcomes = (*COMPARED.values(), ENTROPY)
            differences = [_difference(values[name].get(method, {}), values[name].get(other, {})) for name in outcomes]
            yield [other, str(len(pairs)), *differences]


def _mean(values: Values) -> str:
    return f"{sum(values.values()) / len(values):.3f}" if values else ""


def _difference(mine: Values, theirs: Values) -> str:
    differences = [mine[seed] - theirs[seed] for seed in sorted(mine) if seed in theirs]
    return shown(interval(differences)) if differences else ""


def _markdown(rows: Iterator[list[str]]) -> str:
    header = next(rows)
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, ["---"] * len(header), *rows))


def _held(study: Study) -> str:
    return f"{len(study.regimes)} and {', '.join(study.methods)}"


if __name__ == "__main__":
    sys.exit(main())
