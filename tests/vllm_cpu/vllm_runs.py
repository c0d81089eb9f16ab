"""What the tests with a real vLLM run: `covgrpo eval` in vLLM's environment, and models that both engines load."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import torch
from tiny import tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

# One process without compilation, and little memory for keys and values: these models are small.
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
OPTIONS = {"enforce_eager": "true", "max_model_len": "512"}
ROOT = Path(__file__).parents[2]


def vllm_python() -> str | None:
    """The Python of an environment with vLLM."""
    return os.environ.get("COVGRPO_VLLM_PYTHON")


def in_vllm(*argv: str) -> str:
    """Run Python in vLLM's environment with this checkout, and return what it prints."""
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT / "src")}
    made = subprocess.run([str(vllm_python()), *argv], env=environment, capture_output=True, text=True, timeout=900)
    assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-4000:]
    return made.stdout


def evaluate(model: Path, benchmark: Path, *flags: str) -> dict[str, Any]:
    """`covgrpo eval --engine vllm`, its JSON."""
    options = [word for name, value in OPTIONS.items() for word in ("--vllm", f"{name}={value}")]
    argv = ["eval", str(model), "--benchmark", str(benchmark), "--engine", "vllm", *options, *flags, "--json"]
    text = in_vllm("-m", "covgrpo", *argv)
    return dict(json.loads(text[text.index("{") :]))


def known_policy(folder: Path, chances: dict[str, float]) -> Path:
    """Write a model whose next token has these chances after every text.

    Every embedding is the same vector, and attention and MLP write nothing, so the last hidden state is a constant h.
    The head's rows are log(chance) h / |h|^2. Tokens that are not named are as good as impossible.
    """
    tokenizer = tiny_tokenizer()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=128, num_hidden_layers=1,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=False,
            pad_token_id=0, eos_token_id=2, bos_token_id=None,
        )
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name or "embed" in name else 0.0)
        logits = torch.full((len(tokenizer),), -30.0)
        for text, chance in chances.items():
            logits[tokenizer.convert_tokens_to_ids(text)] = torch.tensor(chance).log()
        # h is the embedding over its own root mean square: 1 everywhere, to the norm's epsilon.
        model.lm_head.weight.copy_(logits[:, None].expand(-1, 128) / 128)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def problems(path: Path, pairs: list[tuple[str, str]]) -> Path:
    """Write a benchmark of these questions and answers."""
    lines = [{"id": f"p{i}", "problem": question, "answer": answer} for i, (question, answer) in enumerate(pairs)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
