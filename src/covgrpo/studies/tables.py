"""A study's tables: Markdown for people, CSV with every value for others. Accuracies are fractions."""

import csv
import io
from collections.abc import Mapping, Sequence

from covgrpo.studies.analysis import ALL_OUTCOMES, BY_SEED, Cell, analyse, tuned
from covgrpo.studies.records import Record
from covgrpo.studies.statistics import Interval, verdict
from covgrpo.studies.study import Study

_CSV_HEADER = (
    *("regime", "method", "outcome", "n", "mean", "median", "low", "high", "pairs", "difference", "median_difference"),
    *("difference_low", "difference_high", "difference_t_low", "difference_t_high", "p", "p_corrected", "values"),
)
_SHOWN = [name for name in ALL_OUTCOMES if not name.startswith(("pass2@", "pass4@", "pass8@"))]


def results_markdown(study: Study, records: Mapping[str, Record], swept: Sequence[str] = ()) -> str:
    """Every table of a study.

    Args:
        study: the study.
        records: those that are finished, by run.
        swept: options for which the methods are also compared each at its own best value.

    """
    done = sum(run.id in records for run in study.runs)
    title = ALL_OUTCOMES[study.outcome].title
    parts = [f"# {study.name}", "", *([study.about, ""] if study.about else [])]
    parts += [f"{done} of {len(study.runs)} runs. Primary outcome: {title}. Baseline: {study.baseline}.", ""]
    if study.hard_regimes:
        parts += [f"Named beforehand as hard on {study.baseline}: {'; '.join(study.hard_regimes)}.", ""]
    if not records:
        return "\n".join(parts)
    in_full = (study.outcome, *study.secondary)
    cells = {name: analyse(study, records, name) for name in dict.fromkeys((*in_full, *_SHOWN))}
    for name in in_full:
        title = ALL_OUTCOMES[name].title
        margin = study.margin if name == study.outcome else None
        parts += [f"## {title[0].upper()}{title[1:]}", "", *outcome_table(study, cells[name], margin), ""]
    for option in swept:
        parts += _tuned_part(study, records, option)
    shown = {name: cells[name] for name in _SHOWN}
    for regime in dict.fromkeys(cell.regime for cell in cells[study.outcome] if cell.regime != BY_SEED):
        parts += [f"## {regime or study.name}", "", *regime_table(study, shown, regime), ""]
    return "\n".join(parts).rstrip() + "\n"


def outcome_table(study: Study, cells: Sequence[Cell], margin: float | None = None) -> list[str]:
    """A row for each regime and method: mean and median, difference to the baseline with intervals, verdict."""
    header = [
        *("regime", "method", "seeds", "mean", "median", f"difference to {study.baseline}", "95 % bootstrap"),
        *("95 % Student", "verdict", "p", "p, Holm"),
    ]
    lines = [_line(header), _line(["---"] * len(header))]
    for cell in cells:
        own, difference = cell.own, cell.difference
        compared = [""] * 6
        if difference is not None:
            compared = [
                *(f"{difference.mean:+.3f}", _range(difference.low, difference.high, "+.3f")),
                *(_range(difference.t_low, difference.t_high, "+.3f"), verdict(difference, margin)),
                *(_p(cell.p), _p(cell.p_corrected)),
            ]
        lines.append(_line([cell.regime, cell.method, str(own.n), f"{own.mean:.3f}", f"{own.median:.3f}", *compared]))
    return lines


def regime_table(study: Study, by_outcome: Mapping[str, Sequence[Cell]], regime: str) -> list[str]:
    """A row for each outcome, a column for each method: mean, and the difference to the baseline with its interval."""
    cells = {(name, c.method): c for name, found in by_outcome.items() for c in found if c.regime == regime}
    methods = [method for method in study.methods if any(key[1] == method for key in cells)]
    lines = [_line(["", *methods]), _line(["---"] * (len(methods) + 1))]
    for name in by_outcome:
        row = [_shown(cells.get((name, method))) for method in methods]
        if any(row):
            lines.append(_line([ALL_OUTCOMES[name].title, *row]))
    return lines


def results_csv(study: Study, records: Mapping[str, Record]) -> str:
    """Every outcome of every method in every regime, with all values by seed."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_CSV_HEADER)
    for name in ALL_OUTCOMES:
        for cell in analyse(study, records, name):
            writer.writerow(_csv_row(cell))
    return out.getvalue()


def _tuned_part(study: Study, records: Mapping[str, Record], option: str) -> list[str]:
    cells, chosen = tuned(study, records, option, study.outcome, study.outcome)
    if not cells:
        return []
    parts = [f"## Each method at its own {option}", ""]
    parts += [f"Chosen for each seed by the mean {ALL_OUTCOMES[study.outcome].title} over the other seeds.", ""]
    parts += [*outcome_table(study, cells, study.margin), ""]
    for (regime, method), values in chosen.items():
        counts = ", ".join(f"{value} ({values.count(value)} of {len(values)})" for value in dict.fromkeys(values))
        parts.append(f"- {f'{regime}, ' if regime else ''}{method}: {counts}")
    return [*parts, ""]


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return ""
    text = _number(cell.own.mean)
    if cell.difference is not None:
        difference = cell.difference
        text += f" ({_number(difference.mean, '+')} [{_number(difference.low, '+')}, {_number(difference.high, '+')}])"
    return text


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.3f}" if abs(value) < 10 else f"{value:{sign}.1f}"


def _range(low: float, high: float, form: str) -> str:
    return f"[{low:{form}}, {high:{form}}]"


def _p(value: float | None) -> str:
    return "" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def _csv_row(cell: Cell) -> list[str]:
    difference: Interval | None = cell.difference
    compared = [""] * 9
    if difference is not None:
        d = difference
        numbers = (d.mean, d.median, d.low, d.high, d.t_low, d.t_high, cell.p, cell.p_corrected)
        compared = [str(d.n), *("" if number is None else f"{number:.6g}" for number in numbers)]
    own = cell.own
    return [
        *(cell.regime, cell.method, cell.outcome, str(own.n)),
        *(f"{number:.6g}" for number in (own.mean, own.median, own.low, own.high)),
        *compared,
        " ".join(f"{seed}:{value:.6g}" for seed, value in cell.values.items()),
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
