"""How well a study's runs hold the entropy: the tables of docs/entropy.md, from kept records.

    python scripts/held_entropy.py [studies/hold/records]

Means of 25 steps of the rollouts' entropy, as fractions of the mean of the first 10 steps, which is the target of
`hold_entropy`. "lowest, highest": over all such means that end at step 75 to the last, and over all runs.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean

TARGET_STEPS, WINDOW, SETTLED = 10, 25, 50
COLUMNS = (50, 100, 200, 300, 400, 500)


def windows(entropy: list[float]) -> dict[int, float]:
    """Last step of each window -> its mean as a fraction of the target."""
    target = fmean(entropy[:TARGET_STEPS])
    ends = range(WINDOW, len(entropy) + 1, WINDOW)
    return {end: fmean(entropy[end - WINDOW : end]) / target for end in ends}


def table(records: list[dict]) -> list[str]:
    """Return the lines of the table."""
    runs = defaultdict(list)
    for record in records:
        runs[record["regime"], record["method"]].append(windows(record["curves"]["entropy"]))
    lines = [
        f"| regime | method | runs | {' | '.join(map(str, COLUMNS))} | lowest, highest |",
        f"|{'---|' * (len(COLUMNS) + 4)}",
    ]
    for (regime, method), found in sorted(runs.items()):
        means = [fmean(run[step] for run in found) if all(step in run for run in found) else None for step in COLUMNS]
        cells = ["" if mean is None else f"{mean:.2f}" for mean in means]
        settled = [value for run in found for step, value in run.items() if step > SETTLED]
        span = f"{min(settled):.2f}, {max(settled):.2f}" if settled else ""
        lines.append(f"| {regime} | {method} | {len(found)} | {' | '.join(cells)} | {span} |")
    return lines


def main() -> None:
    """Print the table."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "studies/hold/records")
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    print("\n".join(table(records)))


if __name__ == "__main__":
    main()
