"""Measure covgrpo beside stock TRL on this machine's GPU and write the table of docs/gpu.md.

    python scripts/gpu_report.py [--shapes 0.5b 1.5b] [--steps 3] [--tests build/gpu-tests.xml] [--output docs/gpu.md]
    python scripts/gpu_report.py --shapes 0.5b --only micro-batches      some lines, printed and not written

`make test-gpu` runs the tests first and hands their result over. Models have the shape of Qwen2.5-0.5B and -1.5B and
random weights, so nothing is downloaded. Each case is `covgrpo bench`: both sides take steps in turn on the same
completions, and stock TRL is as it comes. Both are on the GPU at once, so the larger shape is measured with
checkpointing alone. What docs/gpu.md says between its two markers is replaced, the rest stays.
"""

import argparse
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from covgrpo.bench import BenchCase, measure
from covgrpo.runs.record.environment import describe_environment

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

SHAPES = {
    "0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    "1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
}
VOCABULARY = {"tiny": 512}  # else Qwen2.5's
WORKLOAD = {
    "prompts_per_step": 8, "num_generations": 8, "prompt_length": 256, "completion_length": 64, "zero_share": 0.0
}  # fmt: skip
CHECKPOINTING: dict[str, dict[str, Any]] = {
    "gradient checkpointing": {"gradient_checkpointing": True},
    "checkpointing, micro-batches of 8": {"gradient_checkpointing": True, "micro_batch_size": 8},
    "checkpointing, a quarter of the groups without advantage": {"gradient_checkpointing": True, "zero_share": 0.25},
}
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "tiny": CHECKPOINTING,
    "0.5b": {"whole step at once": {}, **CHECKPOINTING},
    "1.5b": CHECKPOINTING,
}
COLUMNS = (
    "shape", "case", "covgrpo, s/step", "stock TRL, s/step", "times faster", "update, s", "stock update, s",
    "times faster", "covgrpo, GB", "stock TRL, GB",
)  # fmt: skip


def make_model(shape: str, folder: Path) -> Path:
    """Write a model with random weights, whose tokenizer has one token a character."""
    characters = "abcdefghijklmnopqrstuvwxyz0123456789"
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[EOS]"}
    vocabulary = {text: i for i, text in enumerate([*special.values(), *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, special["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **special).save_pretrained(folder)
    torch.manual_seed(0)
    settings = {
        "vocab_size": VOCABULARY.get(shape, 151_936), "num_key_value_heads": 2, "tie_word_embeddings": True,
        "max_position_embeddings": 4096, "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": None,
    }  # fmt: skip
    Qwen2ForCausalLM(Qwen2Config(**settings, **SHAPES[shape])).save_pretrained(folder)
    return folder


def row(shape: str, name: str, result: dict[str, Any]) -> str:
    """One line of the table."""
    ours, stock, ratios = result["covgrpo"], result["trl"], result["ratios"]
    seconds = [side["step_s"]["median"] for side in (ours, stock)]
    updates = [side["step_s"]["mean"] * side["share"]["update"] for side in (ours, stock)]
    memory = [side["peak_memory_bytes"] / 1e9 for side in (ours, stock)]
    return (
        f"| {shape} | {name} | {seconds[0]:.3g} | {seconds[1]:.3g} | {ratios['step_median_of_pairs']:.2f} "
        f"| {updates[0]:.3g} | {updates[1]:.3g} | {updates[1] / updates[0]:.2f} | {memory[0]:.1f} | {memory[1]:.1f} |"
    )


def rows_of(shapes: list[str], steps: int, only: str = "") -> list[str]:
    """Measure the cases whose name holds ``only``; one that fails (out of memory, say) is a line that says so."""
    rows = []
    for shape in shapes:
        with tempfile.TemporaryDirectory() as folder:
            model = str(make_model(shape, Path(folder)))
            for name, changes in CASES[shape].items():
                if only not in name:
                    continue
                case = BenchCase(**{**WORKLOAD, **changes}, model=model, lengths="equal", steps=steps)
                try:
                    line = row(shape, name, measure(case).to_dict())
                except Exception as error:
                    said = " ".join(str(error).split())[:200]
                    line = f"| {shape} | {name} | failed: {said} {'| ' * (len(COLUMNS) - 3)}|"
                print(line, file=sys.stderr, flush=True)
                rows.append(line)
    return rows


def tests_of(path: Path | None) -> str:
    """Return what pytest's JUnit file says, in a sentence."""
    if path is None:
        return "The tests were not run with it."
    suite = ElementTree.parse(path).getroot()  # noqa: S314 (pytest wrote it a moment ago)
    suite = suite if suite.tag == "testsuite" else suite[0]
    count = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = [f"`{case.get('name')}`" for case in suite.iter("testcase") if case.find("failure") is not None]
    passed = count["tests"] - count["failures"] - count["errors"] - count["skipped"]
    text = f"Tests: {passed} passed, {count['failures'] + count['errors']} failed, {count['skipped']} skipped."
    return f"{text} Failed: {', '.join(failed)}." if failed else text


def section(rows: list[str], tests: str) -> str:
    """Return the part of the page between the markers."""
    found = describe_environment()
    gpus = ", ".join(f"{gpu['name']} ({gpu['memory_bytes'] / 2**30:.0f} GiB)" for gpu in found["gpus"]) or "no GPU"
    versions = ", ".join(f"{name} {found['versions'][name]}" for name in ("torch", "transformers", "trl", "covgrpo"))
    return "\n".join(
        [
            BEGIN,
            f"Measured on {datetime.now(UTC):%Y-%m-%d}: {gpus}; {versions}.",
            "",
            tests,
            "",
            f"| {' | '.join(COLUMNS)} |",
            "|---" * len(COLUMNS) + "|",
            *rows,
            END,
        ]
    )


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=tuple(SHAPES), default=["0.5b", "1.5b"])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", metavar="TEXT", help="only cases whose name holds this; the page stays as it is")
    parser.add_argument("--tests", type=Path, help="JUnit file of the tests")
    parser.add_argument("--output", type=Path, default=Path("docs/gpu.md"))
    args = parser.parse_args()
    if not torch.accelerator.is_available() and "tiny" not in args.shapes:
        print("gpu_report: there is no GPU here; --shapes tiny tries the script on a CPU.", file=sys.stderr)
        return 2
    if args.only is not None:
        return 0 if rows_of(args.shapes, args.steps, args.only) else 2
    page = args.output.read_text()
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        print(f"gpu_report: {args.output} must hold the lines {BEGIN} and {END} once each.", file=sys.stderr)
        return 2
    text = section(rows_of(args.shapes, args.steps), tests_of(args.tests))
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    args.output.write_text(before + text + after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
