"""Time the scoring pass that the weights need where nothing else has the log-probs, beside the update it comes before.

    python scripts/scoring_cost.py [PROMPTS GENERATIONS PROMPT_LENGTH COMPLETION_LENGTH]

SmolLM2-135M, bf16 autocast where the CPU has it, prompts shared; medians of 5 after one warm-up.
"""

import statistics
import sys
import time

import torch
from trl.trainer.utils import add_fused_lm_head

from covgrpo.forward import SharedPrompts, sharing_prompts
from covgrpo.hardware import autocast
from covgrpo.models import load_model


def main(prompts: int = 8, generations: int = 16, prompt_length: int = 75, completion_length: int = 5) -> None:
    model, _ = load_model("smollm2-135m")
    model.train()
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    torch.manual_seed(0)
    ids = torch.randint(10, 40_000, (prompts, prompt_length)).repeat_interleave(generations, dim=0)
    rows = torch.cat([ids, torch.randint(10, 40_000, (len(ids), completion_length))], dim=1)
    batch = SharedPrompts.from_rows(rows, torch.ones_like(rows), completion_length)
    labels = batch.completion_ids.reshape(1, -1)

    def forward() -> torch.Tensor:
        with sharing_prompts(model.base_model), autocast(torch.device("cpu")):
            return model(shared_prompt=batch, shift_labels=labels, fused_lm_head=True).log_probs.sum()

    def scoring() -> None:
        with torch.no_grad():
            forward()

    def update() -> None:
        forward().backward()
        model.zero_grad()

    times: dict[str, list[float]] = {"scoring pass": [], "update": []}
    for _ in range(6):  # in turn, so that a change of the machine's speed meets both
        for name, function in (("scoring pass", scoring), ("update", update)):
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    for name, seconds in medians.items():
        print(f"{name:<14} {seconds:.2f} s")
    print(f"ratio          {medians['scoring pass'] / medians['update']:.2f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
