"""Curves over steps: one run's, thinned out; several seeds' as a band."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from covgrpo.files import is_number
from covgrpo.report.reading import RunRecords

MOST_POINTS = 1500


@dataclass(frozen=True)
class Curve:
    """y over steps; ``low`` and ``high`` are the extremes over the runs, equal to y where there is one run."""

    steps: list[int]
    y: list[float | None]
    low: list[float | None]
    high: list[float | None]

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, rounded to five digits."""
        return {"steps": self.steps, **{name: _rounded(getattr(self, name)) for name in ("y", "low", "high")}}


def number(value: Any) -> float | None:
    """A record's value if it is a number that can be drawn."""
    return float(value) if is_number(value) else None


def curve(runs: Sequence[RunRecords], key: str) -> Curve | None:
    """Mean over runs of a metric at each step, with the extremes; ``None`` where no run has it.

    A run that has ended earlier than the others drops out of the mean from there on. Beyond ``MOST_POINTS`` steps,
    neighbours are put together: their mean, and their extremes as the band.
    """
    by_step: dict[int, list[float]] = {}
    for run in runs:
        for record in run.metrics:
            value = number(record.get(key))
            if value is not None:
                by_step.setdefault(record["step"], []).append(value)
    if not by_step:
        return None
    steps = sorted({record["step"] for run in runs for record in run.metrics})
    parts = _buckets(len(steps))
    means: list[float | None] = []
    lows: list[float | None] = []
    highs: list[float | None] = []
    for start, end in parts:
        values = [value for step in steps[start:end] for value in by_step.get(step, ())]
        means.append(statistics.fmean(values) if values else None)
        lows.append(min(values) if values else None)
        highs.append(max(values) if values else None)
    return Curve([steps[end - 1] for _, end in parts], means, lows, highs)


def _buckets(count: int) -> list[tuple[int, int]]:
    """Neighbouring ranges that cover ``count`` steps, at most ``MOST_POINTS`` of them."""
    size = -(-count // MOST_POINTS)
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def _rounded(values: list[float | None]) -> list[float | None]:
    return [None if value is None else float(f"{value:.5g}") for value in values]


def last(runs: Sequence[RunRecords], key: str, count: int = 10) -> float | None:
    """Mean of the last ``count`` values of a metric over the runs."""
    values = [value for run in runs for value in _tail(run, key, count)]
    return statistics.fmean(values) if values else None


def _tail(run: RunRecords, key: str, count: int) -> list[float]:
    found = [value for record in run.metrics if (value := number(record.get(key))) is not None]
    return found[-count:]


def correlation(x: Sequence[float], y: Sequence[float]) -> dict[str, float] | None:
    """Pearson's and Spearman's correlation, and the slope of the least-squares line; ``None`` where there is none."""
    if len(x) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    try:
        return {
            "n": len(x),
            "pearson": statistics.correlation(x, y),
            "spearman": statistics.correlation(_ranks(x), _ranks(y)),
            "slope": statistics.linear_regression(x, y).slope,
        }
    except statistics.StatisticsError:  # they differ by less than can be squared
        return None


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 0, ties sharing the mean of theirs."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for place in order[start:end]:
            ranks[place] = (start + end - 1) / 2
        start = end
    return ranks
