"""A plot of a sweep."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from covgrpo.bench.case import SWEEPS

_AXES = {
    "prompt_length": "prompt length, tokens",
    "completion_length": "completion length, tokens",
    "num_generations": "completions a prompt",
    "zero_share": "share of groups without advantage",
    "layers": "layers of the model",
}


def plot_sweep(results: list[dict[str, Any]], name: str, path: Path) -> None:
    """Draw seconds a step (median; bars from fastest to slowest) and peak memory of both sides over the axis."""
    field = SWEEPS[name][0]
    x = [result["case"][field] for result in results]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), dpi=130)
    for side, label, colour in (("trl", "stock TRL", "#888888"), ("covgrpo", "covgrpo", "#d1495b")):
        seconds = [result[side]["step_s"] for result in results]
        middle = [value["median"] for value in seconds]
        low = [value["median"] - value["min"] for value in seconds]
        high = [value["max"] - value["median"] for value in seconds]
        axes[0].errorbar(x, middle, yerr=[low, high], color=colour, label=label, marker="o", capsize=3)
        axes[1].plot(x, [result[side]["peak_memory_bytes"] / 1e9 for result in results], color=colour, marker="o")
    for at, result in zip(x, results, strict=True):
        ratio = result["ratios"]["step_mean"]
        axes[0].annotate(f"{ratio:.1f}x", (at, result["covgrpo"]["step_s"]["median"]), (0, -14), fontsize=8,
                         textcoords="offset points", ha="center")  # fmt: skip
    if field != "zero_share":
        axes[0].set(xscale="log", yscale="log")
        axes[1].set(xscale="log")
    axes[0].set(xlabel=_AXES[field], ylabel="seconds a step")
    axes[1].set(xlabel=_AXES[field], ylabel="peak memory, GB", ylim=(0, None))
    axes[0].margins(y=0.15)  # room for the ratios
    for axis in axes:
        axis.set_xticks(x, [str(value) for value in x])
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
