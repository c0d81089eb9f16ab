"""A study's tables: Markdown for people, CSV with every value for others. Accuracies are fractions."""

import csv
import io
from collections.abc import Mapping, Sequence

from covgrpo.studies.analysis import ALL_OUTCOMES, EVERYWHERE, Cell, analyse, tuned
from covgrpo.studies.records import Record
from covgrpo.studies.spec import Study
from covgrpo.studies.statistics import Interval, verdict

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
        table = outcome_table(study, cells[name], margin) if cells[name] else ["Not measured in any run."]
        parts += [f"## {title[0].upper()}{title[1:]}", "", *table, ""]
    for option in swept:
        parts += _tuned_part(study, records, option)
    shown = {name: cells[name] for name in _SHOWN}
    there = {cell.regime for found in shown.values() for cell in found}
    for regime in (name for name in (*study.regimes, EVERYWHERE) if name in there):
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
        own = cell.own
        compared = [""] * 6 if cell.difference is None else _compared(cell, cell.difference, margin)
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


def _compared(cell: Cell, difference: Interval, margin: float | None) -> list[str]:
    """The columns from the difference on. One pair, or equal differences, have no interval; nor p where it is 1."""
    width = difference.has_width
    bounds = ((difference.low, difference.high), (difference.t_low, difference.t_high))
    intervals = [_range(low, high, "+.3f") if width else "" for low, high in bounds]
    p_values = [_p(value) if width or cell.p != 1.0 else "" for value in (cell.p, cell.p_corrected)]
    return [f"{difference.mean:+.3f}", *intervals, verdict(difference, margin), *p_values]


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return ""
    text = _number(cell.own.mean)
    if cell.difference is not None:
        difference = cell.difference
        width = f" [{_number(difference.low, '+')}, {_number(difference.high, '+')}]" if difference.has_width else ""
        text += f" ({_number(difference.mean, '+')}{width})"
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
