"""Draw reward and entropy over steps of several runs side by side.

python scripts/plot_runs.py docs/demo.png runs/demo-grpo=GRPO runs/demo="covariance-weighted (Gaussian)"
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from covgrpo.runs.record import RunFolder

COLOURS = ("#888888", "#d1495b", "#00798c", "#edae49")


def main(target: str, *runs: str) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), dpi=130)
    for colour, run in zip(COLOURS, runs, strict=False):
        folder, _, label = run.partition("=")
        records = RunFolder(Path(folder)).read_metrics()
        for axis, key in zip(axes, ("reward", "entropy"), strict=True):
            axis.plot([r["step"] for r in records], [r[key] for r in records], color=colour, label=label or folder)
    axes[0].set(xlabel="step", ylabel="mean reward", ylim=(0, 1.02))
    axes[1].set(xlabel="step", ylabel="entropy, nats a token", ylim=(0, None))
    axes[1].legend(frameon=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
