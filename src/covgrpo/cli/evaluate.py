"""``covgrpo eval``."""

import argparse
import json
from pathlib import Path
from typing import Any

from covgrpo.cli import benchmark
from covgrpo.errors import UserError
from covgrpo.files import load_json, user_path
from covgrpo.runs.options import TrainOptions, options_from_dict

_EXAMPLE = """examples:
  covgrpo eval runs/demo --samples 16
  covgrpo eval org/name --benchmark math500 --samples 4 --temperature 0.6 --records math500.jsonl
  covgrpo eval --benchmark problems.jsonl --completions completions.jsonl --json
"""


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "eval",
        help="measure a model's accuracy on a task",
        description="Greedy and sampled accuracy on held-out problems, with 95 %% intervals over problems. "
        "MODEL is a run folder (its task and prompt are used), a model folder, a built-in name or a hub id. "
        "With --benchmark: avg@k, pass@k and maj@k on a mathematics benchmark, of a model or of --completions.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="run folder or model")
    parser.add_argument("--model", dest="model_flag", metavar="MODEL", help="the same, as a flag")
    parser.add_argument("--task", metavar="SPEC", help="task; default: the run's")
    parser.add_argument("--answer-format", metavar="NAME", help="plain, boxed or think; default: the run's, or plain")
    parser.add_argument("--system-prompt", metavar="TEXT", help="system prompt; default: the run's, or the format's")
    parser.add_argument("--num-examples", type=int, metavar="N", help="solved examples; default: the run's, or 0")
    parser.add_argument("--max-completion-length", type=int, metavar="N", help="tokens; default: the run's, or 64")
    parser.add_argument("--problems", type=int, metavar="N", help="problems at most (100; all with --benchmark)")
    parser.add_argument(
        "--samples", type=int, metavar="N", help="sampled completions a problem; 0: none (4; 1 with --benchmark)"
    )
    parser.add_argument("--temperature", type=float, metavar="X", help="of the samples; default: the run's, or 1.0")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of problems, sampling and bootstrap (0)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="completions at once (256; 64 with --benchmark)")
    parser.add_argument("--split", choices=("eval", "train"), default="eval", help="which problems (eval)")
    parser.add_argument(
        "--verifier-memory",
        type=float,
        metavar="GIB",
        help="address space of a verifier; default: the run's, or 2",
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the model")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    benchmark.add_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate and print."""
    if args.model and args.model_flag and args.model != args.model_flag:
        raise UserError(f"two models given: {args.model!r} and {args.model_flag!r}.")
    name = args.model or args.model_flag
    if args.benchmark:
        return benchmark.run(args, name)
    benchmark.refuse_flags(args)
    if not name:
        raise UserError("no model given: pass a run folder, a model folder, a built-in name or a hub id.")
    for option, default in (("problems", 100), ("samples", 4), ("batch_size", 256)):
        if getattr(args, option) is None:
            setattr(args, option, default)
    for option, least in (("problems", 1), ("samples", 0), ("batch_size", 1), ("seed", 0)):
        if getattr(args, option) < least:
            raise UserError(f"--{option.replace('_', '-')} is {getattr(args, option)}; it must be at least {least}.")
    model, options = _model_and_options(name, args)
    found = _evaluate(model, options, args)
    if args.json:
        print(json.dumps({"model": name, "task": options.task, **found}, indent=2))
    else:
        _print(name, options, found)
    return 0


def _model_and_options(name: str, args: argparse.Namespace) -> tuple[str, TrainOptions]:
    """Take the model and the prompt's options: a run's own, or defaults, changed by the flags."""
    from covgrpo.models.resolve import is_run

    folder, values = user_path(name), {}
    model = name
    if is_run(folder):
        values = _run_options(folder)
        model = str(folder / "model")
        if not Path(model).is_dir():
            raise UserError(f"run {name} has no model yet; evaluate one of its checkpoints, or go on with --resume.")
    flags = ["task", "answer_format", "system_prompt", "num_examples", "max_completion_length", "temperature"]
    flags.append("verifier_memory")
    values.update({flag: getattr(args, flag) for flag in flags if getattr(args, flag) is not None})
    if args.task is not None:
        values["task_params"] = {}
    options = options_from_dict(values, name if values else "command line")
    options.check()
    return model, options


def _run_options(folder: Path) -> dict[str, Any]:
    try:
        config = load_json(folder / "config.json")
        return dict(config["options"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'config.json'} is neither a run's nor beside a model's tokenizer.") from error


def _evaluate(model_name: str, options: TrainOptions, args: argparse.Namespace) -> dict[str, Any]:
    from covgrpo.evaluation import EvalSettings, evaluate
    from covgrpo.hardware import best_device
    from covgrpo.models import load_model
    from covgrpo.runs.libraries import quiet_libraries
    from covgrpo.runs.prompts import check_prompts
    from covgrpo.tasks import PromptFormat, load_task
    from covgrpo.verify import VerifierPool

    task = load_task(options.task, options.task_params)
    # The solved examples are those of the run: the first training problems by its seed.
    examples = task.problems("train", options.num_examples, options.seed) if options.num_examples else []
    shown = {example.question for example in examples}
    more = len(examples) if args.split == "train" else 0  # an example is not asked for as well
    problems = task.problems(args.split, args.problems + more, args.seed)
    problems = [problem for problem in problems if problem.question not in shown][: args.problems]
    quiet_libraries()
    model, tokenizer = load_model(model_name, trust_remote_code=args.trust_remote_code)
    model = model.to(best_device())
    settings = EvalSettings(
        samples=args.samples,
        temperature=options.temperature,
        max_completion_length=options.max_completion_length,
        seed=args.seed,
        batch_size=args.batch_size,
        bf16=options.bf16,
    )
    prompt_format = PromptFormat(options.answer_format, options.system_prompt, options.num_examples)
    check_prompts(model, tokenizer, prompt_format, problems, examples, options.max_completion_length)
    with VerifierPool(task.verifier, **options.verifier_limits()) as pool:
        return evaluate(model, tokenizer, problems, examples, prompt_format, pool, settings).to_dict()


def _print(name: str, options: TrainOptions, found: dict[str, Any]) -> None:
    print(f"{name} on {options.task}: n={found['n']} problems, seed {found['seed']}")
    for kind in ("greedy", "sampled"):
        value = found[kind]
        if value is not None:
            note = f" ({found['samples']} samples a problem, temperature {found['temperature']})"
            print(
                f"  {kind:<8} accuracy {value['accuracy']:.3f}  95 % interval [{value['low']:.3f}, {value['high']:.3f}]"
                + (note if kind == "sampled" else "")
            )
    if found["entropy"] is not None:
        print(f"  entropy {found['entropy']:.3f} nats a token, mean length {found['mean_length']:.1f} tokens")
    if found["unscored"]:
        print(f"  {found['unscored']} completions could not be scored and count as 0")
