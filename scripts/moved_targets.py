"""How a target moved in mid-run is followed: the table of docs/entropy.md, from kept records.

    python scripts/moved_targets.py                            prints it
    python scripts/moved_targets.py --write docs/entropy.md    puts it between that file's two marks
    python scripts/moved_targets.py --keep traces --alone RUN RUN ...    keeps records of moved runs of one seed

scripts/move_target.py moves the target of a copy of a run. The run itself was left alone: it is the first RUN, or the
record that a study keeps of it. A share of the way is (entropy - old target) / (new - old), in means of ten steps of
the rollouts' entropy. Cells are medians over the runs. "Highest": of such means up to 100 steps after the move, first
of their mean over the runs, in which noise is less, then of all. "Less the run alone": the highest of the mean over the
runs of (entropy - entropy of the run left alone, in the same steps) / (new - old), plus 1 where the target is moved
back to that of the run left alone. Both runs have the same problems, and the entropy of a step differs mostly by its
problems. "Within a tenth after": the steps, of each run, after which all means lie within 10 % of the new target. ESS:
the effective sample size of the weights, a fraction; 0.5 is the least that they may have.
"""

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median

from page_tables import markdown, show

from covgrpo.errors import UserError
from covgrpo.files import load_json, write_text
from covgrpo.runs.record.folder import RunFolder

KEPT = Path(__file__).parents[1] / "studies/moved-targets"
WINDOW, STEPS = 10, 100
TOLERANCE = 0.1  # of the new target
SAME = 1e-4  # nats: what two records of one step's entropy may differ by; they are rounded
MARKS = ("<!-- moved: made by scripts/moved_targets.py -->\n", "<!-- end of moved -->\n")


@dataclass(frozen=True)
class Move:
    """One move of a run's target.

    Args:
        task: what the table calls it.
        seed: of the run.
        moved_after: steps before the move.
        old: target until then, nats a token.
        new: from there on.
        alone_target: that of the run left alone.
        entropy: of each step's rollouts, nats a token; up to the next move or the end of the run.
        kappa: of each step.
        ess: effective sample size of each step's weights, a fraction.
        alone: entropy of the run left alone, of the same steps, nats a token.

    """

    task: str
    seed: int
    moved_after: int
    old: float
    new: float
    alone_target: float
    entropy: list[float]
    kappa: list[float]
    ess: list[float]
    alone: list[float]

    @property
    def factor(self) -> float:
        """The new target over the old."""
        return round(self.new / self.old, 2)

    def means(self) -> list[float]:
        """Entropy in each mean of ten steps after the move, up to STEPS; nats a token."""
        return self._means(self.entropy)

    def way(self) -> list[float]:
        """Share of the way in each of the means."""
        return [(mean - self.old) / (self.new - self.old) for mean in self.means()]

    def way_less_alone(self) -> list[float]:
        """Share of the way, had the run left alone been at its target in each of the means."""
        surplus = [mean - self.alone_target for mean in self._means(self.alone)]
        return [part - more / (self.new - self.old) for part, more in zip(self.way(), surplus, strict=True)]

    def settled(self) -> str:
        """Steps after which all of the means lie within TOLERANCE of the new target; or "never"."""
        outside = [i for i, mean in enumerate(self.means()) if abs(mean / self.new - 1) > TOLERANCE]
        after = WINDOW * (outside[-1] + 1) if outside else 0
        return "never" if after == WINDOW * len(self.means()) else str(after)

    def _means(self, curve: list[float]) -> list[float]:
        after = curve[self.moved_after : self.moved_after + STEPS]
        return [fmean(after[i : i + WINDOW]) for i in range(0, len(after) - WINDOW + 1, WINDOW)]


def read_moves(task: str, folder: Path, alone: Path) -> list[Move]:
    """Read the moves of a run's target from its folder, and the run left alone from its own or a study's record of it.

    Raises:
        UserError: it is no run that holds its entropy, its target was not moved, or the run left alone is another one.
    """
    run = RunFolder(folder)
    seed, steps = load_json(run.config)["options"]["seed"], run.read_metrics()
    targets = [float(step.get("hold/target", math.nan)) for step in steps]  # NaN in a run's first steps
    moves = [i for i in range(1, len(targets)) if not math.isnan(targets[i - 1]) and targets[i] != targets[i - 1]]
    if not moves:
        raise UserError(f"{folder}: a run whose target was moved is needed; no move was found.")
    columns = ("entropy", "hold/kappa", "weight/ess")
    curves = [[round(float(step[column]), 5) for step in steps] for column in columns]
    curves.append(_read_alone(alone, curves[0], moves[0]))
    ends, first = [*moves[1:], len(steps)], targets[moves[0] - 1]
    return [
        Move(task, seed, start, targets[start - 1], targets[start], first, *(curve[:end] for curve in curves))
        for start, end in zip(moves, ends, strict=True)
    ]


def _read_alone(path: Path, entropy: list[float], moved_after: int) -> list[float]:
    """Entropies of the run left alone; they are those of its copy until the first move."""
    if path.is_dir():
        alone = [round(float(step["entropy"]), 5) for step in RunFolder(path).read_metrics()]
    else:
        alone = load_json(path)["curves"]["entropy"]
    differ = (i for i, (one, other) in enumerate(zip(entropy, alone, strict=False)) if abs(one - other) > SAME)
    same = next(differ, min(len(entropy), len(alone)))
    if same < moved_after or len(alone) < len(entropy):
        raise UserError(
            f"{path}: the run that was copied is needed, {len(entropy)} steps and the first {moved_after} the same; "
            f"{len(alone)} were found, of which the first {same} are the same."
        )
    return alone


def keep(task: str, runs: Sequence[Path], alone: Path) -> str:
    """Keep a record of each run, or of none where one cannot be read; returns their files' names, a line each.

    Raises:
        UserError: see :func:`read_moves`.
    """
    moves = [move for run in runs for move in read_moves(task, run, alone)]
    KEPT.mkdir(exist_ok=True)
    names = [f"{task.replace(' ', '-')}--s{move.seed}--{move.factor:g}.json" for move in moves]
    for name, move in zip(names, moves, strict=True):
        write_text(KEPT / name, json.dumps(asdict(move)) + "\n")
    return "".join(f"{name}\n" for name in names)


def tables() -> str:
    """The table in Markdown, from the kept records."""
    found: dict[tuple[str, float], list[Move]] = defaultdict(list)
    for path in sorted(KEPT.glob("*.json")):
        move = Move(**load_json(path))
        found[move.task, move.factor].append(move)
    return markdown(_rows(found))


def _rows(found: dict[tuple[str, float], list[Move]]) -> Iterator[list[str]]:
    spans = [f"{i + 1} to {i + WINDOW}" for i in range(10, 50, WINDOW)]
    ends = ["within a tenth after", "highest, runs' mean", "less the run alone", "highest of all", "lowest ESS"]
    header = [f"steps {spans[0]}", *spans[1:], *ends]
    yield ["task", "target times", "runs", *header]
    for (task, factor), moves in sorted(found.items()):
        ways = [move.way() for move in moves]
        cells = [f"{median(way[1 + i] for way in ways):.2f}" for i in range(len(spans))]
        highest, ess = [max(way) for way in ways], min(min(move.ess[move.moved_after :]) for move in moves)
        settled = ", ".join(sorted((move.settled() for move in moves), key=lambda text: (len(text), text)))
        ends = [settled, _highest_mean(ways), _highest_mean(move.way_less_alone() for move in moves)]
        ends += [f"{max(highest):.2f}", f"{ess:.2f}"]
        yield [task, f"{factor:g}", str(len(moves)), *cells, *ends]


def _highest_mean(ways: Iterable[list[float]]) -> str:
    return f"{max(fmean(parts) for parts in zip(*ways, strict=False)):.2f}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="FILE", help="file with the two marks between which the table goes")
    parser.add_argument("--keep", metavar="TASK", help="keep records of these runs under this task's name")
    parser.add_argument("--alone", metavar="RUN", type=Path, help="the run that was copied, or a study's record of it")
    parser.add_argument("runs", nargs="*", type=Path)
    args = parser.parse_args(arguments)
    if not bool(args.keep) == bool(args.runs) == bool(args.alone):
        parser.error("--keep TASK, --alone RUN and the folders of runs go together")
    if args.keep is None or args.write:
        return show("moved_targets", tables, MARKS, args.write)
    return show("moved_targets", lambda: keep(args.keep, args.runs, args.alone), MARKS, None)


if __name__ == "__main__":
    sys.exit(main())
