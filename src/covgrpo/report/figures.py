"""Each figure of the report as a file, for a paper or a talk. Needs matplotlib (``pip install covgrpo[plot]``)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

from covgrpo.report.content import CURVES, Content

COLOURS = ("#c8364b", "#6f7076", "#00798c", "#b87400", "#6a4c93", "#2f7d32")


def save_figures(content: Content, folder: Path, formats: Iterable[str] = ("png", "svg")) -> list[Path]:
    """Draw every figure into ``folder``; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {_name(key): _curves(content, key, title, unit) for key, title, unit in CURVES if key in content.curves}
    for run in content.runs:
        if run["histograms"]:
            name = wanted = f"histograms-{_name(run['label'])}"
            count = 1
            while name in figures:  # runs of one label
                name, count = f"{wanted}-{count + 1}", count + 1
            figures[name] = _histograms(run)
    if any(content.entropy_changes):
        figures["entropy-change"] = _entropy_changes(content)
    saved = []
    for name, figure in figures.items():
        figure.tight_layout()
        for kind in formats:
            saved.append(folder / f"{name}.{kind}")
            figure.savefig(saved[-1])
        plt.close(figure)
    return saved


def _name(text: str) -> str:
    return "".join(ch if ch.isalnum() or ch in "._-" else "-" for ch in text)


def _axes(columns: int = 1) -> tuple[Any, Any]:
    figure, axes = plt.subplots(1, columns, figsize=(4.8 * columns, 3.2), dpi=150, squeeze=False)
    for axis in axes[0]:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes[0]


def _curves(content: Content, key: str, title: str, unit: str) -> Any:
    figure, (axis,) = _axes()
    for index, (group, curve) in enumerate(zip(content.groups, content.curves[key], strict=True)):
        if curve is None:
            continue
        colour = COLOURS[index % len(COLOURS)]
        # matplotlib leaves gaps at NaN
        y, low, high = (
            [float("nan") if v is None else v for v in values] for values in (curve.y, curve.low, curve.high)
        )
        axis.plot(curve.steps, y, color=colour, label=group.label)
        if low != high:
            axis.fill_between(curve.steps, low, high, color=colour, alpha=0.2, linewidth=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(xlabel="step", ylabel=unit)
    axis.set_title(title, fontsize=10)
    axis.legend(frameon=False, fontsize=8)
    return figure


def _histograms(run: dict[str, Any]) -> Any:
    """First, middle and last part of training."""
    figure, axes = _axes(2)
    frames = run["histograms"]["frames"]
    chosen = sorted({0, len(frames) // 2, len(frames) - 1})
    for axis, key, label in zip(axes, ("c", "weight"), ("covariance c", "weight w"), strict=True):
        edges = run["histograms"][f"{key}_edges"]
        for place, index in enumerate(chosen):
            counts = frames[index][key]
            total = sum(counts) or 1
            shade = 0.3 + 0.7 * (place + 1) / len(chosen)
            axis.stairs(
                [count / total for count in counts], [i - 0.5 for i in range(len(counts) + 1)],
                color=COLOURS[run["group"] % len(COLOURS)], alpha=shade, label=f"step {frames[index]['last']}",
            )  # fmt: skip
        places = list(range(0, len(edges), 4))
        axis.set_xticks([place + 0.5 for place in places], [f"{edges[place]:g}" for place in places], fontsize=7)
        axis.set(xlabel=label, ylabel="share of the tokens", yscale="log")
    axes[1].legend(frameon=False, fontsize=8)
    return figure


def _entropy_changes(content: Content) -> Any:
    figure, axes = _axes(2)
    for index, (group, found) in enumerate(zip(content.groups, content.entropy_changes, strict=True)):
        if not found:
            continue
        for axis, of in zip(axes, ("predicted", "predicted_step"), strict=True):
            points = [point for point in found["points"] if point[of] is not None]
            axis.plot(
                [point[of] for point in points], [point["change"] for point in points],
                ".", color=COLOURS[index % len(COLOURS)], label=group.label,
            )  # fmt: skip
    axes[0].set(xlabel="-lr Cov(log p, w A), nats", ylabel="measured change of the entropy, nats")
    axes[1].set(xlabel="with the step's effective rate, nats")
    axes[0].legend(frameon=False, fontsize=8)
    return figure
