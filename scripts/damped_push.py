"""Whose push on the policy a weighting keeps: by side of the group's mean, likelihood of the token, and group.

    python scripts/damped_push.py RUN        # a run that kept all its samples, e.g. with --samples-per-step 128

A token's push is u = w |A| (1 - p), half the L1 norm of its gradient over the logits. `kept` is sum w |A| (1 - p) over
sum |A| (1 - p), `share` its share of the push of all groups of that kind, before and after. Groups without advantages
are left out.
"""

import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Push:
    tokens: int = 0
    before: float = 0.0
    after: float = 0.0

    def add(self, before: float, weight: float) -> None:
        self.tokens += 1
        self.before += before
        self.after += weight * before


def read_samples(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def pushes(samples: Iterable[dict[str, Any]]) -> dict[tuple[str, str, str], Push]:
    """(share of the group above its mean, side, likelihood) -> push."""
    groups: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    for sample in samples:
        groups[sample["step"], sample["prompt"]].append(sample)
    found: dict[tuple[str, str, str], Push] = defaultdict(Push)
    for group in groups.values():
        if all(sample["advantage"] == 0 for sample in group):
            continue
        above = sum(sample["advantage"] > 0 for sample in group) / len(group)
        size = "up to 1/4" if above <= 0.25 else "1/4 to 3/4" if above < 0.75 else "3/4 and more"
        for sample in group:
            side = "above" if sample["advantage"] > 0 else "below"
            for logp, weight in zip(sample["tokens"]["logp"], sample["tokens"]["weight"], strict=True):
                p = math.exp(logp)
                key = (size, side, "p < 0.5" if p < 0.5 else "p >= 0.5")
                found[key].add(abs(sample["advantage"]) * (1 - p), weight)
    return found


def table(found: dict[tuple[str, str, str], Push]) -> list[str]:
    lines = ["| of the group above its mean | completion | token | tokens | share before | share after | kept |"]
    lines.append("|---|---|---|---|---|---|---|")
    for size in ("up to 1/4", "1/4 to 3/4", "3/4 and more"):
        members = {key: push for key, push in sorted(found.items()) if key[0] == size}
        before, after = (sum(getattr(push, name) for push in members.values()) for name in ("before", "after"))
        for (_, side, likelihood), push in members.items():
            kept = f"{push.after / push.before:.2f}" if push.before else ""
            shares = f"{push.before / before:.2f} | {push.after / after:.2f}"
            lines.append(f"| {size} | {side} | {likelihood} | {push.tokens} | {shares} | {kept} |")
    return lines


def main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise SystemExit(__doc__)
    path = Path(arguments[0]) / "samples.jsonl"
    if not path.is_file():
        raise SystemExit(f"{path} is not there; name the folder of a run.")
    print("\n".join(table(pushes(read_samples(path)))))


if __name__ == "__main__":
    main(sys.argv[1:])
