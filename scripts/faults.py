"""Runs of a tiny model killed, starved and damaged in every way that a machine has; then they must go on.

    python scripts/faults.py [--moments 20] [--operations 20] [--full 10] [--terms 5] [--evals 10] [--damaged 60]
                             [--seed 0] [--json FILE] [--keep FOLDER]

After each fault the run is resumed, and must end with the weights and the records of a run that nothing happened to, or
say in one sentence what is lost and how to go on. Nothing that was complete may be damaged. Needs Linux and a C
compiler; the campaigns with a real full or read-only disk need the rights to mount one, and say so where they lack.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import fault_cases
import fault_processes as processes


@dataclass
class Campaign:
    """What came of one kind of fault: how often, what was said instead of going on, and what went wrong."""

    name: str
    count: int = 0
    said: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, where: str, found: fault_cases.Outcome) -> None:
        """Count one trial."""
        self.count += 1
        if found.said:
            self.said[found.said] = self.said.get(found.said, 0) + 1
        self.failures += [f"{where}: {text}" for text in found.failures]


def campaigns(args: argparse.Namespace, bench: fault_cases.Bench) -> Iterator[Campaign]:
    """Run them all, one after the other."""
    rng = random.Random(args.seed)  # noqa: S311 (chooses moments, keeps no secret)
    counted: list[tuple[str, int, Callable[[int], tuple[str, fault_cases.Outcome]]]] = [
        ("train: SIGKILL at a random moment", args.moments, lambda i: bench.killed_at_moment(rng)),
        (
            "train: SIGKILL after one file operation",
            args.operations,
            lambda i: bench.killed_at_operation(rng, i, args.operations),
        ),
        ("train: disk full from one write on", args.full, lambda i: bench.full(rng)),
        ("train: two SIGTERM in a row", args.terms, lambda i: bench.terminated_twice(rng)),
        ("eval --records: SIGKILL after one file operation", args.evals, lambda i: bench.eval_killed(rng, i)),
        ("eval --records: disk full from one write on", args.evals, lambda i: bench.eval_full(rng)),
        ("train: a file of the last checkpoint gone, half or empty", args.damaged, lambda i: bench.damaged(rng, i)),
    ]
    for name, count, trial in counted:
        campaign = Campaign(name)
        for index in range(count):
            campaign.add(*trial(index))
        if count:
            yield campaign
    for name, one in bench.single_cases().items() if args.single else ():
        campaign = Campaign(name)
        found = one()
        if found is None:
            print(f"left out, needs the rights to mount: {name}")
            continue
        campaign.add(name, found)
        yield campaign


def main() -> int:
    """Run the campaigns; 1 where something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"moments": 20, "operations": 20, "full": 10, "terms": 5, "evals": 10, "damaged": 60, "seed": 0}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N")
    parser.add_argument(
        "--no-single", dest="single", action="store_false", help="without the faults that are tried once"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work there, and leave it")
    args = parser.parse_args()
    processes.with_shim()
    processes.warm_up()
    found = []
    with tempfile.TemporaryDirectory(dir=args.keep) as folder:
        for campaign in campaigns(args, fault_cases.Bench(Path(folder))):
            found.append(campaign)
            print(f"{campaign.name}: {campaign.count}, {len(campaign.failures)} failed", flush=True)
            for text, times in campaign.said.items():
                print(f"  said {times} times: {text}")
            for text in campaign.failures:
                print(f"  FAILED {text}", flush=True)
    if args.json:
        args.json.write_text(json.dumps([asdict(campaign) for campaign in found], indent=1) + "\n")
    return int(any(campaign.failures for campaign in found))


if __name__ == "__main__":
    sys.exit(main())
