"""What may be concluded from runs, in a sentence or two for each set-up, and what may not."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from covgrpo.report.idle import nothing_learnt
from covgrpo.report.reading import RunRecords
from covgrpo.report.series import number

_STEPS = 10  # at the beginning and at the end, that are compared


def conclusions(groups: Mapping[str, Sequence[RunRecords]]) -> list[str]:
    """Sentences on each group of runs (label -> runs of different seeds), and on what the groups together show.

    A change of a curve is named where the means of its first and last ten steps lie more than two standard errors
    apart, by the scatter of the steps.
    """
    found = []
    for label, runs in groups.items():
        idle = [text for run in runs if (text := nothing_learnt(run.metrics)) is not None]
        if idle and len(idle) == len(runs):
            found.append(f"{label}: {idle[0]}")
            continue
        parts = [_change(runs, "reward", "the reward", ""), _change(runs, "entropy", "the entropy", " nats a token")]
        said = [part for part in (*parts, _accuracy(runs)) if part is not None]
        if said:
            found.append(f"{label}: {'; '.join(said)}.")
    if len(groups) > 1:
        few = [label for label, runs in groups.items() if len(runs) < 3]
        found.append(
            f"Which is better cannot be told from this: {few[0]} has {len(groups[few[0]])} of the three seeds or more "
            "that a comparison needs (covgrpo compare)."
            if few
            else "The bands are extremes over seeds, no intervals; covgrpo compare tests differences in pairs of seeds."
        )
    return found


def _change(runs: Sequence[RunRecords], key: str, name: str, unit: str) -> str | None:
    ends: list[list[float]] = [[], []]
    for run in runs:
        values = [value for record in run.metrics if (value := number(record.get(key))) is not None]
        if len(values) < 2 * _STEPS:
            return None
        ends[0] += values[:_STEPS]
        ends[1] += values[-_STEPS:]
    first, last = (statistics.fmean(end) for end in ends)
    error = sum(statistics.variance(end) / len(end) for end in ends) ** 0.5
    if abs(last - first) <= 2 * error:
        return f"{name} stayed at about {last:.3g}{unit}"
    return f"{name} {'rose' if last > first else 'fell'} from {first:.3g} to {last:.3g}{unit}"


def _accuracy(runs: Sequence[RunRecords]) -> str | None:
    """Greedy accuracy of a single run before and after, and whether its intervals keep the two apart."""
    if len(runs) != 1:
        return None
    values: list[dict[str, float]] = []
    for when in ("before", "after"):
        result = runs[0].evaluation.get(when)
        value: Any = result.get("greedy") if isinstance(result, dict) else None
        if not isinstance(value, dict) or any(number(value.get(part)) is None for part in ("accuracy", "low", "high")):
            return None
        values.append(value)
    before, after = values
    apart = after["low"] > before["high"] or after["high"] < before["low"]
    verdict = "their intervals do not overlap" if apart else "their intervals overlap, so no change is shown"
    return f"held-out accuracy, greedy, went from {before['accuracy']:.3f} to {after['accuracy']:.3f} ({verdict})"
