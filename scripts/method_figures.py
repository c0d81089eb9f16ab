"""Draw the figures of docs/method.md from a rollout of a real model: which tokens the kernel damps.

    python scripts/method_figures.py     # docs/method-kernel.png, docs/method-traces.png, and the page's table; 5 s

docs/method-rollout.jsonl holds 48 completions, 12 for each of 4 prompts, with their rewards and log-probs. They are
those of samples.jsonl after

    python scripts/small_model.py --style tries --output traces
    covgrpo train --model traces --task 'countdown:?style=tries' --system-prompt '' --steps 1 --prompts-per-step 4 \
        --num-generations 12 --max-completion-length 96 --samples-per-step 48

Covariances and weights are computed here, by covgrpo.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.colors import LinearSegmentedColormap, Normalize
from torch import Tensor

from covgrpo import gaussian_through_weights, gaussian_weights, token_covariance

DOCS = Path(__file__).resolve().parents[1] / "docs"
ROLLOUT = DOCS / "method-rollout.jsonl"
READINGS = {"gaussian": gaussian_weights, "gaussian_through": gaussian_through_weights}
RARE = -1.0  # log-prob below which a token is called rare
# The prompt whose completions are drawn as traces, and which of its completions.
PROMPT, SHOWN = "2 8 10=36", (8, 1, 0)
COLUMNS = 34
WEIGHTS = LinearSegmentedColormap.from_list("weights", ["#c8364b", "#ffffff", "#4fa8b3"])
PLAIN = {"Software": None}  # no version in the files, which would differ between machines


@dataclass
class Rollout:
    """A rollout batch: B completions of at most T tokens."""

    prompts: list[str]  # B
    tokens: list[list[str]]  # B, of each its tokens
    logps: Tensor  # (B, T)
    mask: Tensor  # (B, T)
    rewards: Tensor  # (B,)
    group_ids: Tensor  # (B,)

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What every weighting takes; the advantages are GRPO's."""
        return self.logps, advantages(self.rewards, self.group_ids), self.mask, self.group_ids


def read_rollout() -> Rollout:
    """Read docs/method-rollout.jsonl."""
    rows = [json.loads(line) for line in ROLLOUT.read_text(encoding="utf-8").splitlines()]
    longest = max(len(row["logp"]) for row in rows)
    logps = torch.zeros(len(rows), longest, dtype=torch.float64)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for b, row in enumerate(rows):
        logps[b, : len(row["logp"])] = torch.tensor(row["logp"], dtype=torch.float64)
        mask[b, : len(row["logp"])] = True
    prompts = [row["prompt"] for row in rows]
    names = list(dict.fromkeys(prompts))
    ids = torch.tensor([names.index(prompt) for prompt in prompts])
    rewards = torch.tensor([row["reward"] for row in rows], dtype=torch.float64)
    return Rollout(prompts, [row["tokens"] for row in rows], logps, mask, rewards, ids)


def advantages(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """A_i = (R_i - mean R) / std R over each group: (B,)."""
    A = torch.zeros_like(rewards)
    for group in group_ids.unique():
        rows = group_ids == group
        A[rows] = (rewards[rows] - rewards[rows].mean()) / rewards[rows].std()
    return A


def covariance_by_sigma(rollout: Rollout) -> Tensor:
    """c / sigma of every valid token, sigma of its own group: (N,)."""
    c = token_covariance(*rollout.arguments)
    scaled = torch.zeros_like(c)
    for group in rollout.group_ids.unique():
        cells = rollout.mask & (rollout.group_ids == group)[:, None]
        scaled[cells] = c[cells] / c[cells].std(correction=0)
    return scaled[rollout.mask]


def table(rollout: Rollout) -> list[str]:
    """Mean weights of a group's tokens by kind and reading, in Markdown; the groups from many right to few."""
    lines = [
        "| right of 12 | weighting | rare, right | rare, wrong | others, right | others, wrong |",
        "|---|---|---|---|---|---|",
    ]
    wins, rare = (rollout.rewards == 1)[:, None], rollout.logps < RARE
    right_K = {int(rollout.rewards[rollout.group_ids == k].sum()): k for k in rollout.group_ids.unique()}
    for right, group in sorted(right_K.items(), reverse=True):
        cells = rollout.mask & (rollout.group_ids == group)[:, None]
        for name, weigh in READINGS.items():
            w = weigh(*rollout.arguments)
            kinds = (rare & wins, rare & ~wins, ~rare & wins, ~rare & ~wins)
            means = [f"{w[cells & kind].mean():.2f}" for kind in kinds]
            lines.append(f"| {right} | `{name}` | {' | '.join(means)} |")
    return lines


def draw_kernel(rollout: Rollout) -> Any:
    """The kernel over c, above a histogram of the rollout's c."""
    x = covariance_by_sigma(rollout)
    figure, axis = plt.subplots(figsize=(7.2, 3.7), dpi=150)
    edges = torch.arange(-7.125, 7.2, 0.25)
    axis.hist(x.clamp(-7, 7), bins=edges, color="#b9bcc4", log=True)
    axis.set(xlabel="c / sigma of the token's group", ylabel="tokens", xlim=(-7.2, 7.2), ylim=(0.7, 3000))
    kernel = axis.twinx()
    at = torch.linspace(-7.2, 7.2, 400)
    kernel.plot(at, (-(at**2) / 2).exp(), color="#c8364b", linewidth=2)
    kernel.set_ylabel("weight before normalising", color="#c8364b")
    kernel.set_ylim(0, 1.09)
    kernel.tick_params(axis="y", colors="#c8364b")
    kernel.text(-4.6, 0.55, "rare tokens of\nbetter completions,\nsure tokens of\nworse ones", ha="center", fontsize=9)
    kernel.text(4.6, 0.55, "rare tokens of\nworse completions,\nsure tokens of\nbetter ones", ha="center", fontsize=9)
    for one in (axis, kernel):
        one.spines["top"].set_visible(False)
    figure.tight_layout()
    return figure


def draw_traces(rollout: Rollout) -> Any:
    """Some completions of one prompt, token by token, coloured by what either reading makes of them."""
    rows = [b for b, prompt in enumerate(rollout.prompts) if prompt == PROMPT]
    figure, axes = plt.subplots(len(READINGS), 1, figsize=(8.4, 5.0), dpi=150)
    scale = Normalize(0, 2)
    for axis, (name, weigh) in zip(axes, READINGS.items(), strict=True):
        weights = weigh(*rollout.arguments)
        for place, shown in enumerate(SHOWN):
            row = rows[shown]
            draw_trace(axis, place, rollout, row, weights[row], scale)
        axis.set(xlim=(-3.2, COLUMNS), ylim=(len(SHOWN) - 0.35, -0.6))
        axis.set_title(name, loc="left", fontsize=10, fontweight="bold")
        axis.axis("off")
    colours = plt.cm.ScalarMappable(scale, WEIGHTS)
    figure.subplots_adjust(left=0.01, right=0.995, top=0.94, bottom=0.15, hspace=0.15)
    place = figure.add_axes((0.25, 0.1, 0.5, 0.025))
    bar = figure.colorbar(colours, cax=place, orientation="horizontal", ticks=[0, 0.5, 1, 1.5, 2], extend="both")
    bar.set_label("weight of the token's advantage")
    return figure


def draw_trace(axis: Any, place: int, rollout: Rollout, row: int, weights: Tensor, scale: Normalize) -> None:
    """One completion: a box a token, its weight under it."""
    right = rollout.rewards[row] == 1
    axis.text(-3.1, place - 0.1, "right" if right else "wrong", va="center", color="#00798c" if right else "#c8364b")
    for t, token in enumerate(rollout.tokens[row][:COLUMNS]):
        w = float(weights[t])
        box = plt.Rectangle((t, place - 0.4), 0.94, 0.55, facecolor=WEIGHTS(scale(w)), edgecolor="#cccccc", lw=0.5)
        axis.add_patch(box)
        text = {"<eos>": "end", " ": "␣"}.get(token, token)
        size = 6 if text == "end" else 10
        axis.text(t + 0.47, place - 0.12, text, ha="center", va="center", family="DejaVu Sans Mono", fontsize=size)
        axis.text(t + 0.47, place + 0.28, f"{w:.1f}", ha="center", va="center", fontsize=6.5, color="#333333")


def main() -> int:
    """Draw both figures, print the table."""
    rollout = read_rollout()
    print("\n".join(table(rollout)))
    draw_kernel(rollout).savefig(DOCS / "method-kernel.png", metadata=PLAIN)
    draw_traces(rollout).savefig(DOCS / "method-traces.png", metadata=PLAIN)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
