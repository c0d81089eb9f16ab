"""``covgrpo compare``."""

import argparse
import dataclasses
import re
import time
from pathlib import Path
from typing import Any

from covgrpo.cli.display import duration
from covgrpo.errors import UserError
from covgrpo.files import write_text
from covgrpo.suggest import check_choice

_EXAMPLE = """examples:
  covgrpo compare studies/demo.yaml --list
  covgrpo compare studies/demo.yaml
  covgrpo compare studies/main.yaml --only grpo-- gaussian--            these two methods first
  covgrpo compare studies/main.yaml --shard 2/4 --output /data/main     one part of four; records merge by copying
  covgrpo compare studies/main.yaml --adopt studies/sides               runs of that study with the same options count
  covgrpo compare studies/main.yaml --no-run --figures                  rebuild tables and plots from the records
"""


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "compare",
        help="run a study of several methods and seeds, and compare them",
        description="Run what a study file asks for and has not been run yet, then write its tables. A finished run "
        "leaves a small record and is never run again; one that was stopped, however, goes on from its last "
        "checkpoint.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", metavar="STUDY", help="YAML file of the study")
    parser.add_argument("--output", metavar="FOLDER", help="folder of records and tables; default: beside the file")
    parser.add_argument("--workers", type=int, metavar="N", help="runs at once; default: as the cores allow")
    parser.add_argument("--shard", metavar="I/N", help="only this part of the runs, 1/N to N/N; pairs stay together")
    parser.add_argument("--list", action="store_true", help="only list the runs and which are done")
    parser.add_argument("--no-run", action="store_true", help="only rebuild tables from the records")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="only runs whose name holds one of these texts")
    parser.add_argument(
        "--adopt", nargs="+", metavar="FOLDER", default=[],
        help="take over records of runs with the same options from other studies' folders",
    )  # fmt: skip
    parser.add_argument(
        "--tuned", nargs="*", metavar="OPTION", default=["learning_rate"],
        help="swept options for which each method is also compared at its own best value (learning_rate)",
    )  # fmt: skip
    parser.add_argument("--figures", action="store_true", help="also draw plots (needs matplotlib)")
    parser.add_argument("--report", action="store_true", help="also write a page of curves for each regime")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run and compare; 0, 1 if a run failed, or the signal's exit code if one stopped it."""
    from covgrpo.runs.options import TrainOptions
    from covgrpo.studies import read_study

    study = read_study(args.study)
    folder = Path(args.output) if args.output else Path(args.study).with_suffix("")
    runs = study.shard(*_shard(args.shard)) if args.shard else study.runs
    for text in args.only or ():
        if not any(text in spec.id for spec in study.runs):  # another part's run is no mistake
            raise UserError(f"--only {text!r}: no run of study {args.study} has that in its name.")
    if args.only:
        runs = [spec for spec in runs if any(text in spec.id for text in args.only)]
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers is {args.workers}; it must be at least 1.")
    for name in args.tuned:
        check_choice("--tuned", name, [field.name for field in dataclasses.fields(TrainOptions)])
    if args.list:
        for flag in ("adopt", "no_run", "figures", "report"):
            if getattr(args, flag):
                raise UserError(f"--list only lists; leave out --{flag.replace('_', '-')}.")
        return _list(study, folder, runs)
    for other in args.adopt:
        _adopt(study, folder, runs, Path(other))
    code = 0 if args.no_run else _run(study, folder, runs, args.workers)
    if code <= 1:
        _write_results(study, folder, args)
    return code


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match:
        raise UserError(f"--shard is {text!r}; it must look like 2/4.")
    return int(match[1]), int(match[2])


def _list(study: Any, folder: Path, runs: list[Any]) -> int:
    from covgrpo.studies import read_records

    done = read_records(folder, runs)
    for spec in runs:
        print(f"{'done' if spec.id in done else 'open'}  {spec.id}  {spec.options.steps} steps")
    print(f"{study.name}: {len(done)} of {len(runs)} runs done")
    return 0


def _adopt(study: Any, folder: Path, runs: list[Any], other: Path) -> None:
    from covgrpo.studies.records import adopt

    taken = adopt(study.name, folder, runs, other)
    print(f"{other}: {len(taken)} records taken over")
    for spec in taken:
        print(f"  {spec.id}")


def _run(study: Any, folder: Path, runs: list[Any], workers: int | None) -> int:
    from covgrpo.studies import read_records
    from covgrpo.studies.schedule import Listener, default_workers, missing, run_missing

    read_records(folder, runs)  # refuses records of other options before anything is run
    left = missing(folder, runs)
    count = min(workers or default_workers(runs), max(1, len(left)))
    print(f"{study.name}: {len(runs) - len(left)} of {len(runs)} runs done, {len(left)} to go, {count} at once")
    if not left:
        return 0
    progress = Progress(len(runs), left, count)
    listener = Listener(progress.started, progress.step, progress.finished, progress.failed)
    try:
        outcome = run_missing(study, folder, runs, count, listener)
    finally:
        progress.close()
    if outcome.stopped_by:
        print("stopped; the same command goes on from here")
        return 128 + outcome.stopped_by
    return 1 if outcome.failed else 0


def _write_results(study: Any, folder: Path, args: argparse.Namespace) -> None:
    from covgrpo.studies import read_records
    from covgrpo.studies.tables import results_csv, results_markdown

    records = read_records(folder, study.runs)
    write_text(folder / "results.md", results_markdown(study, records, args.tuned))
    write_text(folder / "results.csv", results_csv(study, records))
    print(f"tables: {folder / 'results.md'}, {folder / 'results.csv'} ({len(records)} of {len(study.runs)} runs)")
    if args.report:
        from covgrpo.studies.pages import write_pages

        print(f"pages: {', '.join(str(path) for path in write_pages(study, records, folder))}")
    if args.figures:
        try:
            from covgrpo.studies.figures import save_figures
        except ImportError as error:
            raise UserError("--figures needs matplotlib: pip install covgrpo[plot].") from error
        print(f"figures: {', '.join(str(path) for path in save_figures(study, records, folder))}")


class Progress:
    """What is running and how long the rest will take: lines, and on a terminal a last line that redraws itself."""

    def __init__(self, total: int, left: list[Any], workers: int):
        from rich.console import Console

        self.console = Console(highlight=False, emoji=False)
        self.total, self.workers = total, workers
        self.left = {spec.id: spec for spec in left}
        self.done = total - len(left)
        self.at: dict[str, int] = {}
        self.since: dict[str, tuple[float, int]] = {}
        self.rates: dict[str, list[float]] = {}
        self.live: Any = None
        if self.console.is_terminal:
            from rich.live import Live

            self.live = Live(console=self.console, refresh_per_second=2)
            self.live.start()

    def started(self, spec: Any) -> None:
        """A run begins."""
        self.at[spec.id] = 0
        self.since[spec.id] = time.monotonic(), -1
        self._show()

    def step(self, spec: Any, step: int) -> None:
        """A run has reached a step; its first word is where it goes on from."""
        since, first = self.since[spec.id]
        if first < 0:
            self.since[spec.id] = since, step
        self.at[spec.id] = step
        self._show()

    def finished(self, spec: Any, seconds: float) -> None:
        """A run is finished."""
        self.done += 1
        self.left.pop(spec.id, None)
        steps = spec.options.steps - max(0, self.since[spec.id][1])
        self.rates.setdefault(spec.regime, []).append(seconds / max(1, steps))
        self.at.pop(spec.id, None)
        self._line(f"{self.done}/{self.total}  {spec.id}  {duration(seconds)}{self._rest()}")

    def failed(self, spec: Any, text: str) -> None:
        """A run has failed."""
        self.left.pop(spec.id, None)
        self.at.pop(spec.id, None)
        self._line(f"FAILED  {spec.id}: {text}")

    def close(self) -> None:
        """Leave the screen as it is."""
        if self.live is not None:
            self.live.stop()

    def seconds_left(self) -> float | None:
        """Seconds until all is done, by the pace of each regime so far; ``None`` before any pace is known."""
        paces = {regime: sum(found) / len(found) for regime, found in self.rates.items()}
        for name, step in self.at.items():
            since, first = self.since[name]
            if name in self.left and first >= 0 and step - first >= 3:
                paces.setdefault(self.left[name].regime, (time.monotonic() - since) / (step - first))
        if not paces:
            return None
        usual = sum(paces.values()) / len(paces)
        work = sum(
            (spec.options.steps - self.at.get(spec.id, 0)) * paces.get(spec.regime, usual)
            for spec in self.left.values()
        )
        return work / self.workers

    def _rest(self) -> str:
        left = self.seconds_left()
        return f", about {duration(left)} left" if left else ""

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)
        self._show()

    def _show(self) -> None:
        if self.live is not None:
            running = "  ".join(f"{name} {step}/{self.left[name].options.steps}" for name, step in self.at.items())
            self.live.update(f"{self.done}/{self.total} done{self._rest()}  {running}")
