"""Quantiles of the token covariance c of a model on a task, beside those that the paper reports (arXiv 2605.11538).

    python scripts/covariance_quantiles.py --model FOLDER --task 'countdown:?style=tries' --max-completion-length 96

Batches as a training step draws them: some prompts of the train split, each with a group of completions; advantages
normalised in their group, (r - mean) / (std + 1e-4), as TRL has it. The tokens of all batches go into one table, each
side on its own: the c that the top fraction of its tokens reaches. A group of equal rewards has c = 0, on no side.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from covgrpo import token_covariance
from covgrpo.errors import UserError
from covgrpo.evaluation.evaluate import encode_prompt, eos_ids
from covgrpo.hardware import autocast
from covgrpo.metrics.summary import summarise_weighting
from covgrpo.models import load_model
from covgrpo.rollouts import SamplingSettings, sample
from covgrpo.tasks import Problem, PromptFormat, get_answer_format, load_task
from covgrpo.verify import VerifierPool

# fraction of a side's tokens -> the paper's thresholds for c > 0 and c < 0
PAPER = {
    "0.0001": (11.52, -13.62),
    "0.01": (3.32, -3.34),
    "0.2": (0.58, -0.36),
    "0.4": (0.33, -0.22),
    "1": (0.06, -0.04),
}
_EPSILON = 1e-4  # TRL's


@dataclass(frozen=True)
class Batch:
    """One step's completions: B of them, T tokens at most.

    Attributes:
        logps: (B, T) float; of the sampled tokens.
        entropies: (B, T) float; nats.
        mask: (B, T) bool; valid tokens.
        rewards: (B,) float; fractions.
        group_ids: (B,) int; one for each prompt.
        truncated: how many completions the limit cut off.
    """

    logps: Tensor
    entropies: Tensor
    mask: Tensor
    rewards: Tensor
    group_ids: Tensor
    truncated: int


def draw_batch(
    model: torch.nn.Module,
    tokenizer: Any,
    problems: Sequence[Problem],
    pool: VerifierPool,
    options: argparse.Namespace,
    generator: torch.Generator,
) -> Batch:
    """A group of completions for each of the problems, scored."""
    prompt_format, ends = PromptFormat(), eos_ids(model, tokenizer)
    extract = get_answer_format(prompt_format.answer_format).extract
    rows = [problem for problem in problems for _ in range(options.completions)]
    settings = SamplingSettings(options.max_completion_length, ends, tokenizer.pad_token_id, options.temperature)
    prompts = [encode_prompt(tokenizer, prompt_format.messages(problem)) for problem in rows]
    with autocast(next(model.parameters()).device):
        drawn = sample(model, prompts, settings, generator)
    texts = tokenizer.batch_decode(drawn.token_ids, skip_special_tokens=True)
    verdicts = pool.score([(problem.payload, extract(text)) for problem, text in zip(rows, texts, strict=True)])
    logps, entropies = (
        pad_sequence([torch.tensor(row) for row in values], batch_first=True, padding_value=torch.nan)
        for values in (drawn.logps, drawn.entropies)
    )
    return Batch(
        logps=logps,
        entropies=entropies,
        mask=~logps.isnan(),
        rewards=torch.tensor([verdict.score for verdict in verdicts]),
        group_ids=torch.arange(len(problems)).repeat_interleave(options.completions),
        truncated=sum(ids[-1] not in ends for ids in drawn.token_ids),
    )


def normalised_advantages(rewards: Tensor, completions: int) -> Tensor:
    """(B,) float: A = (r - mean(r)) / (std(r) + 1e-4) over each group of neighbours; std with Bessel's correction."""
    r = rewards.view(-1, completions)
    return ((r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + _EPSILON)).flatten()


def table(batches: Sequence[Batch], completions: int) -> str:
    """The table in Markdown, under one line on the batches."""
    cs, logps, advantages = [], [], []
    for batch in batches:
        A = normalised_advantages(batch.rewards, completions)
        cs.append(token_covariance(batch.logps, A, batch.mask, batch.group_ids)[batch.mask])
        logps.append(batch.logps[batch.mask])
        advantages.append(A[:, None].expand_as(batch.logps)[batch.mask])
    c = torch.cat(cs)
    found = summarise_weighting(torch.cat(logps), torch.cat(advantages), torch.ones_like(c), c, c)
    lines = [
        _about(batches, found),
        "",
        "| top fraction of a side | c > 0 | paper | ratio | c < 0 | paper | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, paper in PAPER.items():
        cells = [name]
        for side, reported in zip(("pos", "neg"), paper, strict=True):
            value = found.get(f"cov/{side}_{name}")
            cells += ["", f"{reported:.2f}", ""] if value is None else _compared(value, reported)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _compared(value: float, reported: float) -> list[str]:
    return [f"{value:.3f}", f"{reported:.2f}", f"{value / reported:.2f}"]


def _about(batches: Sequence[Batch], found: dict[str, float]) -> str:
    rows = sum(len(batch.rewards) for batch in batches)
    tokens = sum(int(batch.mask.sum()) for batch in batches)
    right = sum(batch.rewards.sum().item() for batch in batches) / rows
    entropy = sum(batch.entropies[batch.mask].sum().item() for batch in batches) / tokens
    cut = sum(batch.truncated for batch in batches) / rows
    return (
        f"{len(batches)} batches, {rows} completions, {tokens} tokens ({tokens / rows:.1f} a completion, {cut:.3f} "
        f"truncated); accuracy {right:.3f}, entropy {entropy:.3f} nats a token, "
        f"mean of c {found['cov/mean']:.4f}, sigma {found['cov/sigma']:.4f}"
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or name of a model")
    parser.add_argument("--task", required=True, help="spec of a task")
    parser.add_argument("--prompts", type=int, default=4, help="of a batch")
    parser.add_argument("--completions", type=int, default=12, help="of a prompt")
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--max-completion-length", type=int, default=96, help="tokens")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for name, least in (("prompts", 1), ("completions", 2), ("batches", 1), ("max_completion_length", 1)):
        if getattr(options, name) < least:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be at least {least}.")
    if not options.temperature > 0:
        raise UserError(f"--temperature is {options.temperature}; it must be above 0.")
    return options


def draw_batches(options: argparse.Namespace) -> Iterator[Batch]:
    model, tokenizer = load_model(options.model)
    model.eval()
    task = load_task(options.task)
    problems = task.problems("train", options.prompts * options.batches, options.seed)
    generator = torch.Generator(next(model.parameters()).device).manual_seed(options.seed)
    with VerifierPool(task.verifier) as pool:
        for start in range(0, len(problems), options.prompts):
            yield draw_batch(model, tokenizer, problems[start : start + options.prompts], pool, options, generator)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    print(table(list(draw_batches(options)), options.completions))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
