"""``covgrpo eval --benchmark``: a mathematics benchmark, of a model or of completions made elsewhere."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from covgrpo.cli.flags import pairs
from covgrpo.errors import UserError
from covgrpo.files import user_path, write_text
from covgrpo.packages import require

_ONLY_HERE = (
    "completions",
    "records",
    "scores",
    "top_p",
    "result",
    "label",
    "verifier_workers",
    "verifier_timeout",
    "engine",
    "vllm",
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of benchmarks to ``covgrpo eval``."""
    group = parser.add_argument_group("benchmarks")
    group.add_argument(
        "--benchmark", metavar="NAME|FILE", help="aime24, math500, amc23, minerva, olympiadbench, or a JSON-lines file"
    )
    group.add_argument(
        "--completions", metavar="FILE", help="score these instead of a model: lines of {id, completion}"
    )
    group.add_argument("--records", metavar="FILE", help="keep completions here as they come, and go on from them")
    group.add_argument("--scores", metavar="FILE", help="write a line for each completion: id, extracted answer, score")
    group.add_argument("--result", metavar="FILE", help="also write the JSON object to a file, for `covgrpo table`")
    group.add_argument("--label", metavar="TEXT", help="what the table calls it; default: the model or the file")
    group.add_argument("--top-p", type=float, metavar="X", help="probability mass that is drawn from (0.95)")
    group.add_argument("--engine", metavar="NAME", help="auto (vLLM where it is, else ours), vllm or own (auto)")
    group.add_argument(
        "--vllm",
        action="append",
        metavar="KEY=VALUE",
        help="argument of vllm.LLM (tensor_parallel_size=2). Repeatable.",
    )
    group.add_argument("--verifier-workers", type=int, metavar="N", help="verifier processes (one a core)")
    group.add_argument("--verifier-timeout", type=float, metavar="S", help="seconds that a verifier may take (5)")


def refuse_flags(args: argparse.Namespace) -> None:
    """Refuse flags that mean nothing without ``--benchmark``.

    Raises:
        UserError: one was given.
    """
    for name in _ONLY_HERE:
        if getattr(args, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} needs --benchmark.")


def run(args: argparse.Namespace, model: str | None) -> int:
    """Evaluate and print."""
    from covgrpo.evaluation.at_k import at_k
    from covgrpo.evaluation.benchmarks import load_benchmark
    from covgrpo.evaluation.grading import VERIFIER, grade
    from covgrpo.verify import DEFAULT_MEMORY_GIB, VerifierPool, usable_cores

    _check(args, model)
    require(f"benchmark {args.benchmark}", "math_verify")
    problems = load_benchmark(args.benchmark)[: args.problems]
    drawn, about = _completions(args, model, problems)
    workers, timeout_s = args.verifier_workers or usable_cores(), args.verifier_timeout or 5.0
    memory_gib = args.verifier_memory or DEFAULT_MEMORY_GIB
    answer_format = args.answer_format or "math"
    with VerifierPool(VERIFIER, workers, timeout_s, memory_gib) as pool:
        scored = grade(problems, {key: texts for key, (texts, _) in drawn.items()}, answer_format, pool)
        failures = dict(pool.failures)
    if not scored:
        raise UserError("none of the benchmark's problems has a completion.")
    if args.scores:
        write_text(
            Path(args.scores), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(problems, scored))
        )
    found: dict[str, Any] = {
        "benchmark": args.benchmark,
        "answer_format": answer_format,
        **about,
        "label": args.label or about["label"],
        **at_k(scored, args.seed),
        "problems_without_completions": len(problems) - len(scored),
        "failures": failures,
        **_lengths([one for _, ones in drawn.values() for one in ones]),
    }
    if args.result:
        write_text(Path(args.result), json.dumps(found, indent=2) + "\n")
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        _print(found)
    return 0


def _check(args: argparse.Namespace, model: str | None) -> None:
    if bool(model) == bool(args.completions):
        raise UserError("--benchmark needs a model or --completions, one of the two.")
    if args.task:
        raise UserError(f"--task {args.task} and --benchmark {args.benchmark} exclude each other.")
    least = {"problems": 1, "samples": 1, "batch_size": 1, "seed": 0, "max_completion_length": 1, "verifier_workers": 1}
    for name, minimum in least.items():
        value = getattr(args, name)
        if value is not None and value < minimum:
            raise UserError(f"--{name.replace('_', '-')} is {value}; it must be at least {minimum}.")
    if args.top_p is not None and not 0 < args.top_p <= 1:
        raise UserError(f"--top-p is {args.top_p}; it must be a fraction above 0, at most 1.")
    if args.temperature is not None and not 0 <= args.temperature < float("inf"):
        raise UserError(f"--temperature is {args.temperature}; it must be finite and at least 0.")
    for name in ("verifier_timeout", "verifier_memory"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name.replace('_', '-')} is {value}; it must be finite and above 0.")
    if args.engine not in (None, "auto", "vllm", "own"):
        raise UserError(f"--engine {args.engine!r} is unknown; known: auto, vllm, own.")


def _completions(args: argparse.Namespace, model: str | None, problems: list[Any]) -> tuple[dict[str, Any], Any]:
    """Problem id -> (texts, what is known of their lengths); and where they come from."""
    if args.completions:
        from covgrpo.evaluation.completions import read_completions

        texts = read_completions(args.completions, {problem.id for problem in problems})
        return {key: (value, []) for key, value in texts.items()}, {"label": Path(args.completions).stem}
    from covgrpo.evaluation.generation import GenerationSettings, draw_all
    from covgrpo.runs.libraries import quiet_libraries
    from covgrpo.tasks import PromptFormat

    quiet_libraries()
    given = {
        "samples": args.samples, "temperature": args.temperature, "top_p": args.top_p, "batch_size": args.batch_size,
        "max_completion_length": args.max_completion_length,
    }  # fmt: skip
    settings = GenerationSettings(seed=args.seed, **{k: v for k, v in given.items() if v is not None})
    name, by_vllm = str(_model_folder(str(model))), _by_vllm(args)
    vllm_options = pairs("vllm", args.vllm or [])
    prompt_format = PromptFormat(args.answer_format or "math", args.system_prompt, 0)
    prompts = {problem.id: prompt_format.messages(problem) for problem in problems}
    drawn = draw_all(
        lambda: _engine(args, name, settings, list(prompts.values()), vllm_options if by_vllm else None),
        prompts,
        settings,
        Path(args.records) if args.records else None,
        # Another engine draws other completions; records without a name are our sampler's.
        {"model": str(model), "benchmark": args.benchmark, **_weights(name), **_engine_record(by_vllm, vllm_options)},
        progress=lambda done, total: print(f"completions: {done}/{total}", file=sys.stderr),
    )
    about = {"label": str(model), "model": str(model), "temperature": settings.temperature, "top_p": settings.top_p}
    about.update(seed=settings.seed, max_completion_length=settings.max_completion_length)
    return {key: ([one.completion for one in ones], ones) for key, ones in drawn.items()}, about


def _model_folder(name: str) -> str:
    """A run folder's model, or the name itself."""
    from covgrpo.models.resolve import is_run

    folder = user_path(name)
    if is_run(folder) and (folder / "model").is_dir():
        return str(folder / "model")
    return name


def _by_vllm(args: argparse.Namespace) -> bool:
    """Whether vLLM draws the completions: where it is asked for, or where it is installed and there is a GPU."""
    from importlib.util import find_spec

    import torch

    has_vllm = find_spec("vllm") is not None
    if args.engine == "vllm" and not has_vllm:
        raise UserError("--engine vllm: vLLM is not installed.")
    return args.engine == "vllm" or (args.engine != "own" and has_vllm and torch.cuda.is_available())


def _engine_record(by_vllm: bool, vllm_options: dict[str, Any]) -> dict[str, Any]:
    if not by_vllm:
        if vllm_options:
            raise UserError("--vllm is given, but vLLM does not draw here; --engine vllm asks for it.")
        return {}
    return {"engine": "vllm", **({"vllm": vllm_options} if vllm_options else {})}


def _weights(model: str) -> dict[str, str]:
    """By which weights: a folder's may change under one name, by training on."""
    from covgrpo.evaluation.generation import weights_digest

    folder = user_path(model)
    return {"weights": weights_digest(folder)} if folder.is_dir() else {}


def _engine(
    args: argparse.Namespace, model: str, settings: Any, prompts: list[Any], vllm_options: dict[str, Any] | None
) -> Any:
    from covgrpo.evaluation.generation import SamplerEngine, VllmEngine
    from covgrpo.hardware import best_device
    from covgrpo.models import load_model

    if vllm_options is not None:
        return VllmEngine(model, settings, args.trust_remote_code, vllm_options)
    loaded, tokenizer = load_model(model, trust_remote_code=args.trust_remote_code)
    return SamplerEngine(loaded.to(best_device()), tokenizer, _fitting(args, loaded, tokenizer, settings, prompts))


def _fitting(args: argparse.Namespace, model: Any, tokenizer: Any, settings: Any, prompts: list[Any]) -> Any:
    """The settings, with completions as long as the model's context has room for where no length was asked for.

    Raises:
        UserError: the model's template does not take the prompts, or what was asked for does not fit its context.
    """
    from covgrpo.runs.prompts import context_of, prompt_tokens

    longest = max(prompts, key=lambda messages: sum(len(message["content"]) for message in messages))
    tokens, context = prompt_tokens(tokenizer, longest), context_of(model)
    if context is None or tokens + settings.max_completion_length <= context:
        return settings
    if args.max_completion_length is not None or tokens >= context:
        raise UserError(
            f"the longest prompt has {tokens} tokens; with --max-completion-length {settings.max_completion_length} it "
            f"does not fit the model's context of {context} tokens."
        )
    print(f"completions have {context - tokens} tokens at most: the model's context is {context}", file=sys.stderr)
    return dataclasses.replace(settings, max_completion_length=context - tokens)


def _lengths(drawn: list[Any]) -> dict[str, Any]:
    """Length and truncation statistics of completions that were drawn here."""
    if not drawn:
        return {}
    lengths = sorted(one.length for one in drawn)
    return {
        "length": {
            "mean": sum(lengths) / len(lengths),
            "median": lengths[len(lengths) // 2],
            "max": lengths[-1],
        },
        "truncated": sum(one.truncated for one in drawn) / len(drawn),
    }


def _rows(problems: list[Any], scored: list[Any]) -> Iterator[dict[str, Any]]:
    gold = {problem.id: problem.answer for problem in problems}
    for one in scored:
        for answer, score in zip(one.answers, one.scores, strict=True):
            yield {"id": one.id, "gold": gold[one.id], "answer": answer, "score": score}


def _print(found: dict[str, Any]) -> None:
    print(f"{found['label']} on {found['benchmark']}: n={found['n']} problems, {found['k']} completions each at least")
    print(f"  accuracy  {_interval(found)}")
    for name, value in found.items():
        if name.startswith(("avg@", "pass@", "maj@")):
            print(f"  {name:<9} {_interval(value)}")
    if "length" in found:
        length = found["length"]
        print(f"  length    mean {length['mean']:.0f}, median {length['median']}, max {length['max']} tokens; "
              f"{found['truncated']:.3f} of the completions truncated")  # fmt: skip
    if found["unscored"]:
        print(f"  {found['unscored']} completions could not be scored and count as 0: {found['failures']}")
    if found["problems_without_completions"]:
        print(f"  {found['problems_without_completions']} problems have no completion and are left out")


def _interval(value: dict[str, float]) -> str:
    return f"{value['accuracy']:.3f}  95 % interval [{value['low']:.3f}, {value['high']:.3f}]"
