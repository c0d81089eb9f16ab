"""``covgrpo train``."""

import argparse
import shlex
from typing import Any

from covgrpo.cli.flags import add_option_flags, given_options
from covgrpo.runs.options import TrainOptions, options_from_dict, read_yaml

_EXAMPLE = """examples:
  covgrpo train --task addition --num-examples 2 --max-completion-length 5 --steps 45
  covgrpo train --config recipes/demo.yaml --seed 1 --output runs/demo-1
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
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of options")
    add_option_flags(parser, TrainOptions)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train; 0, or the signal's exit code if one stopped the run."""
    values: dict[str, Any] = read_yaml(args.config) if args.config else {}
    source = args.config or "command line"
    options_from_dict(values, source)
    given = given_options(args, TrainOptions)
    for name in ("task_params", "weighting_kwargs", "trl"):
        if name in given:
            given[name] = {**(values.get(name) or {}), **given[name]}
    options = options_from_dict({**values, **given}, source)
    return _train(options, args)


def _train(options: TrainOptions, args: argparse.Namespace) -> int:
    from covgrpo.cli.display import Display
    from covgrpo.runs.train import Watcher, run_training

    options.check()
    display = Display(options.prompts_per_step * options.num_generations)
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
    return 128 + result.stopped_by if result.stopped_by else 0


def _report(result: Any, options: TrainOptions, args: argparse.Namespace) -> list[str]:
    lines = []
    if result.before and result.after:
        for name in ("greedy", "sampled"):
            before, after = result.before[name], result.after[name]
            label = f"accuracy, {name} (held-out, n={result.before['n']})"
            lines.append(f"{label:<40} {_interval(before)} -> {_interval(after)}")
        label = "entropy of the policy, nats a token"
        lines.append(f"{label:<40} {result.before['entropy']:.3f} -> {result.after['entropy']:.3f}")
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
