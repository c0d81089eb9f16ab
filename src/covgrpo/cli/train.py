"""``covgrpo train``."""

import argparse
import os
import shlex
from typing import Any

from covgrpo.cli.flags import add_option_flags, given_options
from covgrpo.errors import UserError
from covgrpo.runs.options import TrainOptions, options_from_dict
from covgrpo.yaml_text import read_yaml

_EXAMPLE = """examples:
  covgrpo train --task addition --num-examples 2 --max-completion-length 5 --steps 45
  covgrpo train --config my.yaml --seed 1 --output runs/mine-1
  covgrpo train --task jsonl:problems.jsonl --answer-format boxed --model org/name --trl use_vllm=true
"""


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "train",
        help="train a model on a task",
        description="Train a model on a task. Flags win over the config file; both have the same names.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of options")
    add_flags(parser)
    parser.set_defaults(run=run)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a training run, which ``covgrpo demo`` takes as well."""
    dry = parser.add_argument_group("dry run")
    dry.add_argument("--dry-run", action="store_true", help="work the run out on paper: no model, no network, no files")
    dry.add_argument("--processes", type=int, metavar="N", help="devices to reckon with (1)")
    dry.add_argument("--shards", metavar="KIND", help="none, zero2, zero3 or fsdp2 (none)")
    dry.add_argument("--json", action="store_true", help="print the plan as one JSON object")
    add_option_flags(parser, TrainOptions)


def run(args: argparse.Namespace) -> int:
    """Train; 0, or the signal's exit code if one stopped the run."""
    values: dict[str, Any] = read_yaml(args.config) if args.config else {}
    source = args.config or "command line"
    options_from_dict(values, source)
    given = given_options(args, TrainOptions)
    if "task" in given:  # another task, or the same with other parameters: the file's belong to its own
        values = {**values, "task_params": {}}
    for name in ("task_params", "weighting_kwargs", "trl"):
        if name in given:
            given[name] = {**(values.get(name) or {}), **given[name]}
    options = options_from_dict({**values, **given}, source)
    if args.dry_run:
        return _dry_run(options, args)
    for name in ("processes", "shards", "json"):
        if getattr(args, name):
            raise UserError(f"--{name} belongs to --dry-run.")
    return _train(options, args)


def _dry_run(options: TrainOptions, args: argparse.Namespace) -> int:
    """Print the plan; 0, also where it names problems."""
    import json

    from covgrpo.runs.train import plan

    found = plan(options, 1 if args.processes is None else args.processes, args.shards or "none")
    if args.json:
        print(json.dumps(found.to_dict(), indent=2))
        return 0
    print(f"{options.model} on {options.task}, {options.steps} steps")
    for name, value in found.facts.items():
        print(f"  {name:<36} {value:,}" if isinstance(value, int) else f"  {name:<36} {value}")
    for name, amount in found.memory_bytes.items():
        print(f"  memory of a device, {name:<16} {amount / 2**30:.1f} GiB")
    for name, seconds in found.seconds.items():
        print(f"  seconds of a step, {name:<17} about {seconds:.0f} on an A100, at full length")
    for text in found.downloads:
        print(f"  would download {text}")
    for text in found.problems:
        print(f"  note: {text}")
    return 0


def _train(options: TrainOptions, args: argparse.Namespace) -> int:
    from covgrpo.cli.display import Display
    from covgrpo.runs.train import Watcher, run_training

    options.check()
    first = os.environ.get("RANK", "0") == "0"  # as launchers set it; libraries that know are not loaded yet
    display = Display(options.prompts_per_step * options.num_generations, quiet=not first)
    display.message(
        f"covgrpo: {options.model} on {options.task}, {options.weighting or options.method}, {options.steps} steps of "
        f"{options.prompts_per_step} x {options.num_generations} completions, seed {options.seed}"
    )
    watcher = Watcher(display.message, display.started, display.step, display.completion, display.evaluating)
    try:
        result = run_training(options, watcher)
    finally:
        display.close()
    for line in _report(result, options, args):
        display.message(line)
    # A launcher ends all processes when one fails, so the first says that the run was stopped, after all it has to say.
    return 128 + result.stopped_by if result.stopped_by and first else 0


def _report(result: Any, options: TrainOptions, args: argparse.Namespace) -> list[str]:
    from covgrpo.report.idle import nothing_learnt

    lines = []
    if result.before and result.after:
        for name in ("greedy", "sampled"):
            before, after = result.before[name], result.after[name]
            label = f"accuracy, {name} (held-out, n={result.before['n']})"
            lines.append(f"{label:<40} {_interval(before)} -> {_interval(after)}")
        label = "entropy of the policy, nats a token"
        lines.append(f"{label:<40} {result.before['entropy']:.3f} -> {result.after['entropy']:.3f}")
    if (idle := nothing_learnt(result.metrics)) is not None:
        lines.append(idle)
    if result.stopped_by:
        words = [word for word in args.words if word != "--resume"]
        again = " ".join(shlex.quote(word) for word in ["covgrpo", *words, "--resume"])
        lines.append(f"stopped at step {result.step} with a checkpoint; go on with: {again}")
    else:
        model = result.folder / "model"
        lines.append(f"run folder: {result.folder} (model, metrics.jsonl, samples.jsonl, config.json)")
        lines.append(f"next: covgrpo report {result.folder}   or load {model} with transformers")
    return lines


def _interval(value: dict[str, float]) -> str:
    return f"{value['accuracy']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
