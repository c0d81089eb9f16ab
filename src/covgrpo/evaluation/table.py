"""Several evaluated models in the paper's table, the paper's numbers beside them."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covgrpo.errors import UserError
from covgrpo.files import load_json

COLUMNS = {
    "aime24": "AIME24",
    "math500": "MATH-500",
    "amc23": "AMC23",
    "minerva": "Minerva",
    "olympiadbench": "OlympiadBench",
}

# arXiv 2605.11538, table 1, as fractions.
PAPER = {
    "1.5b": {
        "base": (0.288, 0.828, 0.629, 0.265, 0.433),
        "grpo": (0.333, 0.850, 0.675, 0.272, 0.499),
        "clip_cov": (0.333, 0.855, 0.700, 0.290, 0.500),
        "gaussian": (0.300, 0.870, 0.775, 0.298, 0.520),
    },
    "7b": {
        "base": (0.033, 0.826, 0.475, 0.331, 0.404),
        "grpo": (0.100, 0.822, 0.550, 0.331, 0.403),
        "clip_cov": (0.100, 0.824, 0.575, 0.324, 0.413),
        "gaussian": (0.133, 0.828, 0.625, 0.320, 0.427),
    },
}


_MOST = 1e6  # of a number that could be an accuracy, in whatever unit; NaN is none either


@dataclass(frozen=True)
class Cell:
    """A model's accuracy on a benchmark, a fraction, with its 95 % interval; ``None`` bounds in the paper's."""

    accuracy: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Row:
    """A model's cells by benchmark; ``paper`` names the row of the paper that it is to be compared with."""

    label: str
    cells: dict[str, Cell]
    paper: str | None = None

    @property
    def average(self) -> float | None:
        """Mean over the five benchmarks; ``None`` unless all are there."""
        values = [self.cells[name].accuracy for name in COLUMNS if name in self.cells]
        return sum(values) / len(values) if len(values) == len(COLUMNS) else None


def read_results(paths: Sequence[str | Path]) -> list[Row]:
    """Rows from files of ``covgrpo eval --result``, one row a label, in the order in which labels come.

    Raises:
        UserError: a file that is no such result, or a benchmark given twice for a label.
    """
    cells: dict[str, dict[str, Cell]] = {}
    for path in map(Path, paths):
        found = _read(path)
        name = benchmark_name(found["benchmark"])
        row = cells.setdefault(found["label"], {})
        if name in row:
            raise UserError(f"{path}: {found['label']} has {name} twice.")
        row[name] = Cell(found["accuracy"], found["low"], found["high"])
    return [Row(label, row) for label, row in cells.items()]


def benchmark_name(text: str) -> str:
    """The benchmark of a name or of a file named after one."""
    stem = Path(text).stem.lower().replace("-", "").replace("_", "")
    return next((name for name in COLUMNS if stem.startswith(name)), Path(text).stem)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = load_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} as a result of covgrpo eval ({error}).") from error
    names = ("label", "benchmark", "accuracy", "low", "high")
    if not isinstance(found, dict) or any(name not in found for name in names):
        raise UserError(f"{path} is no result of `covgrpo eval --benchmark ... --result FILE`.")
    for name in names:
        value = found[name]
        text = name in ("label", "benchmark")
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MOST
        if not (isinstance(value, str) if text else number):
            raise UserError(f"{path}: {name} must be {'text' if text else 'a number'}, not {value!r}.")
    return found


def paper_rows(size: str) -> list[Row]:
    """The paper's rows of a model size, ``1.5b`` or ``7b``.

    Raises:
        UserError: another size.
    """
    if size not in PAPER:
        raise UserError(f"paper {size!r} is unknown; known: {', '.join(PAPER)}.")
    return [
        Row(f"paper: {method}", {name: Cell(value) for name, value in zip(COLUMNS, values, strict=True)})
        for method, values in PAPER[size].items()
    ]


def differences(rows: Sequence[Row], size: str) -> list[Row]:
    """A row's accuracies less the paper's of the method that its label names, with the row's intervals shifted.

    The paper gives no intervals; those here are of the measured side alone.
    """
    found = []
    for row in rows:
        method = _method(row.label, size)
        if method is None:
            continue
        paper = dict(zip(COLUMNS, PAPER[size][method], strict=True))
        cells = {
            name: Cell(cell.accuracy - paper[name], _minus(cell.low, paper[name]), _minus(cell.high, paper[name]))
            for name, cell in row.cells.items()
            if name in paper
        }
        found.append(Row(f"{row.label} less paper: {method}", cells))
    return found


def _minus(a: float | None, b: float) -> float | None:
    return None if a is None else a - b


def _method(label: str, size: str) -> str | None:
    text = label.lower().replace("-", "_")
    methods = sorted(PAPER[size], key=len, reverse=True)  # the longest: a name may hold another
    return next((method for method in methods if re.search(rf"(?<![a-z0-9]){method}(?![a-z0-9])", text)), None)


def table_cells(rows: Sequence[Row]) -> list[list[str]]:
    """The table as text: header, then a line a row. Fractions, with intervals in brackets where there are any."""
    names = [*COLUMNS, *dict.fromkeys(name for row in rows for name in row.cells if name not in COLUMNS)]
    names = [name for name in names if any(name in row.cells for row in rows)]
    lines = [["model", *(COLUMNS.get(name, name) for name in names), "average"]]
    for row in rows:
        average = row.average
        cells = [_shown(row.cells.get(name)) for name in names]
        lines.append([row.label, *cells, "" if average is None else f"{average:.3f}"])
    return lines


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return ""
    if cell.low is None or cell.high is None:
        return f"{cell.accuracy:.3f}"
    return f"{cell.accuracy:.3f} [{cell.low:.3f}, {cell.high:.3f}]"


def to_markdown(lines: Sequence[Sequence[str]]) -> str:
    """The table in Markdown."""
    rows = [f"| {' | '.join(' '.join(c.replace('|', chr(92) + '|').split()) for c in line)} |" for line in lines]
    return "\n".join([rows[0], f"|{'---|' * len(lines[0])}", *rows[1:]]) + "\n"


def to_csv(lines: Sequence[Sequence[str]]) -> str:
    """The table as CSV."""
    output = io.StringIO()
    csv.writer(output, lineterminator="\n").writerows(lines)
    return output.getvalue()
