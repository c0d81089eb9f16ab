"""A study's plots: differences to the baseline with their intervals, and curves over steps."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from covgrpo.files import writing
from covgrpo.report.figures import COLOURS
from covgrpo.studies.analysis import ALL_OUTCOMES, BY_SEED, EVERYWHERE, analyse
from covgrpo.studies.outcomes import accuracies, last_at, pass_rate, pass_rates
from covgrpo.studies.records import PASS_K, Record
from covgrpo.studies.spec import Study

_WINDOWS = 60  # points of a curve over steps
_DIVERSITY = "pass16@1"


def save_figures(study: Study, records: Mapping[str, Record], folder: Path) -> list[Path]:
    """Draw ``differences.png``, ``curves.png`` and ``pass_at_k.png`` into the folder.

    Raises:
        UserError: they cannot be written.
    """
    if not records:
        return []
    saved = []
    drawn = {"differences": _differences, "curves": _curves, "pass_at_k": _pass_at_k}
    for name, draw in drawn.items():
        figure = draw(study, records)
        saved.append(folder / f"{name}.png")
        with writing(saved[-1]):
            figure.savefig(saved[-1], dpi=130)
        plt.close(figure)
    return saved


def _differences(study: Study, records: Mapping[str, Record]) -> Any:
    """Primary outcome, pass@16 where it is asked for, and held-out entropy: each method minus the baseline, by seed."""
    outcomes = (study.outcome, *(name for name in study.secondary if name == _DIVERSITY), "entropy_held_out")
    others = [method for method in study.methods if method != study.baseline]
    cells = {name: [c for c in analyse(study, records, name) if c.difference is not None] for name in outcomes}
    there = {cell.regime for found in cells.values() for cell in found}
    regimes = [regime for regime in (*study.regimes, EVERYWHERE, BY_SEED) if regime in there]
    rows = len(regimes) * (len(others) + 1)
    figure, axes = plt.subplots(
        1, len(outcomes), figsize=(5 * len(outcomes), 1.2 + 0.2 * rows), sharey=True, squeeze=False
    )
    for axis, name in zip(axes[0], outcomes, strict=True):
        for cell in cells[name]:
            place = regimes.index(cell.regime) * (len(others) + 1) + others.index(cell.method)
            colour = _colour(study, cell.method)
            difference = cell.difference
            assert difference is not None  # noqa: S101 (filtered above)
            axis.plot([difference.t_low, difference.t_high], [place, place], color=colour, linewidth=1, alpha=0.5)
            axis.plot([difference.low, difference.high], [place, place], color=colour, linewidth=3)
            axis.plot(difference.mean, place, "o", color=colour, markersize=5)
        axis.axvline(0, color="#6f7076", linewidth=0.8)
        axis.set_xlabel(f"{ALL_OUTCOMES[name].title}: difference to {study.baseline}", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    middle = (len(others) - 1) / 2
    axes[0][0].set_yticks([i * (len(others) + 1) + middle for i in range(len(regimes))], regimes, fontsize=8)
    axes[0][0].invert_yaxis()
    for method in others:
        axes[0][-1].plot([], [], "o-", color=_colour(study, method), label=method)
    axes[0][-1].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return figure


def _curves(study: Study, records: Mapping[str, Record]) -> Any:
    """A row for each regime: training reward, entropy, held-out accuracy and, where the runs kept it, pass@16.

    Mean over seeds, band from least to most.
    """
    regimes = _finished_regimes(study, records)
    temperature = float(study.outcome.split("@")[1]) if study.outcome.startswith("accuracy@") else 1.0
    diversity = any(len(pass_rates(run, 1.0, 16)) > 1 for run in records.values())
    titles = (
        "training reward",
        "entropy of the step's tokens, nats",
        f"held-out accuracy, temperature {temperature:g}",
        *(["held-out pass@16, temperature 1"] if diversity else []),
    )
    size = (4.3 * len(titles), 2.6 * len(regimes))
    figure, axes = plt.subplots(len(regimes), len(titles), figsize=size, squeeze=False)
    for row, regime in zip(axes, regimes, strict=True):
        for method in study.methods:
            runs = [r for r in records.values() if r.regime == regime and r.method == method]
            if runs:
                colour = _colour(study, method)
                _band(row[0], [_thinned(run.curves["reward"]) for run in runs], colour, method)
                _band(row[1], [_thinned(run.curves["entropy"]) for run in runs], colour, method)
                _band(row[2], [accuracies(run, temperature) for run in runs], colour, method)
                if diversity:
                    _band(row[3], [pass_rates(run, 1.0, 16) for run in runs], colour, method)
        for axis, title in zip(row, titles, strict=True):
            _label(axis, regime, title, "step")
    axes[0][0].legend(frameon=False, fontsize=7)
    figure.tight_layout()
    return figure


def _pass_at_k(study: Study, records: Mapping[str, Record]) -> Any:
    """Pass@k of the last evaluation over k; mean over seeds, band from least to most."""
    regimes = _finished_regimes(study, records)
    figure, axes = plt.subplots(len(regimes), 2, figsize=(9, 2.6 * len(regimes)), squeeze=False)
    for row, regime in zip(axes, regimes, strict=True):
        for axis, temperature in zip(row, (0.6, 1.0), strict=True):
            for method in study.methods:
                found = [last_at(r, temperature) for r in records.values() if (r.regime, r.method) == (regime, method)]
                curves = [_pass_curve(result) for result in found if result is not None]
                if curves:
                    _band(axis, curves, _colour(study, method), method)
            axis.set_xscale("log", base=2)
            _label(axis, regime, f"pass@k, temperature {temperature:g}", "k")
    axes[0][0].legend(frameon=False, fontsize=7)
    figure.tight_layout()
    return figure


def _label(axis: Any, regime: str, title: str, x: str) -> None:
    axis.set_title(f"{regime}: {title}" if regime else title, fontsize=8)
    axis.set_xlabel(x, fontsize=8)
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)


def _pass_curve(result: Mapping[str, Any]) -> list[tuple[int, float]]:
    rates = [(k, pass_rate(result, k)) for k in (1, *PASS_K)]
    return [(k, rate) for k, rate in rates if rate is not None]


def _finished_regimes(study: Study, records: Mapping[str, Record]) -> list[str]:
    return [regime for regime in study.regimes if any(record.regime == regime for record in records.values())]


def _thinned(values: Sequence[float | None]) -> list[tuple[int, float]]:
    """Means of neighbouring steps, at most ``_WINDOWS`` of them."""
    size = -(-len(values) // _WINDOWS)
    points = []
    for start in range(0, len(values), size):
        window = [value for value in values[start : start + size] if value is not None]
        if window:
            points.append((min(start + size, len(values)), statistics.fmean(window)))
    return points


def _band(axis: Any, curves: Sequence[Sequence[tuple[int, float]]], colour: str, label: str) -> None:
    by_step: dict[int, list[float]] = {}
    for curve in curves:
        for step, value in curve:
            by_step.setdefault(step, []).append(value)
    steps = sorted(by_step)
    axis.plot(steps, [statistics.fmean(by_step[s]) for s in steps], color=colour, label=label, linewidth=1.4)
    if len(curves) > 1:
        low, high = [min(by_step[s]) for s in steps], [max(by_step[s]) for s in steps]
        axis.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)


def _colour(study: Study, method: str) -> str:
    """Grey for the baseline, red for the first other method, and so on."""
    others = [name for name in study.methods if name != study.baseline]
    palette = [colour for colour in COLOURS if colour != COLOURS[1]]
    return COLOURS[1] if method == study.baseline else palette[others.index(method) % len(palette)]
