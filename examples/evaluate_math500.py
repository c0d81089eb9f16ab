"""A model on MATH-500: completions drawn once and kept, then avg@k, pass@k and maj@k with 95 % intervals.

    python examples/evaluate_math500.py --model runs/trl_gsm8k/model
    covgrpo eval runs/trl_gsm8k/model --benchmark math500 --samples 4     # the same by the command line

Completions go to a file as they come, and a stopped evaluation goes on from there. Answers are compared as mathematics
in worker processes with limits of time and memory.

Hardware: one GPU with 24 GB for the default model; vLLM is used where it is installed. Downloads the model and
HuggingFaceH4/MATH-500 from the Hugging Face hub; --benchmark FILE takes JSON lines of {"problem", "answer"} instead.
"""

import argparse
import json
from importlib.util import find_spec
from pathlib import Path

from covgrpo.evaluation.at_k import at_k
from covgrpo.evaluation.benchmarks import load_benchmark
from covgrpo.evaluation.generation import GenerationSettings, SamplerEngine, VllmEngine, draw_all
from covgrpo.evaluation.grading import VERIFIER, grade
from covgrpo.hardware import best_device
from covgrpo.models import load_model
from covgrpo.tasks import PromptFormat
from covgrpo.verify import VerifierPool, default_workers


def make_engine(name: str, settings: GenerationSettings):
    if find_spec("vllm"):
        return VllmEngine(name, settings)
    model, tokenizer = load_model(name, dtype="auto")
    return SamplerEngine(model.to(best_device()), tokenizer, settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen/Qwen2.5-0.5B-Instruct")
    parser.add_argument(
        "--benchmark", default="math500", help="aime24, math500, amc23, minerva, olympiadbench or a file"
    )
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--length", type=int, default=2048, help="tokens of a completion")
    parser.add_argument("--output", type=Path, default=Path("runs/evaluate_math500"))
    options = parser.parse_args()

    problems, prompts = load_benchmark(options.benchmark), PromptFormat("math")  # \boxed{}, or the end of the text
    settings = GenerationSettings(options.samples, temperature=0.6, top_p=0.95, max_completion_length=options.length)
    drawn = draw_all(
        engine=lambda: make_engine(options.model, settings),
        prompts={problem.id: prompts.messages(problem) for problem in problems},
        settings=settings,
        records=options.output / "completions.jsonl",
        what={"model": options.model, "benchmark": options.benchmark},
        progress=lambda done, total: print(f"{done}/{total} completions", flush=True),
    )
    texts = {key: [one.completion for one in ones] for key, ones in drawn.items()}
    with VerifierPool(VERIFIER, default_workers()) as pool:
        scored = grade(problems, texts, "math", pool)
    found = at_k(scored)
    cut = sum(one.truncated for ones in drawn.values() for one in ones) / (len(drawn) * options.samples)
    (options.output / "result.json").write_text(json.dumps({**found, "truncated": cut}, indent=2) + "\n")
    for name, value in found.items():
        if name.startswith(("avg@", "pass@", "maj@")):
            print(f"{name:8} {value['accuracy']:.3f}  [{value['low']:.3f}, {value['high']:.3f}]")
    print(f"{cut:.3f} of the completions were cut off at {options.length} tokens")


if __name__ == "__main__":
    main()
