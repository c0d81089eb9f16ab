"""Make a model of one million parameters that solves some countdown problems: a policy to train in minutes.

    python scripts/small_model.py --output FOLDER [--style tries] [--steps N] [--seed 0] [--threads 1]

A Llama with one token a character, trained from scratch on solved problems of the task's train split, and left off
before it has learnt all that it could. `covgrpo train --model FOLDER --task 'countdown:?style=compact'` then goes on.
With the defaults, in four minutes of one CPU core (bf16 autocast): of 1,000 held-out problems 49 % greedy and 38 %
sampled at temperature 1, with an entropy of 0.33 nats a token.

`--style tries` makes one that works countdown by traces of tries (`covgrpo train --task 'countdown:?style=tries'`),
trained on fresh random traces, of which one problem in four has a number more, so that there are harder problems to
measure it on. With the defaults, in 13 minutes of one CPU core (fp32): of 200 held-out problems of three numbers (96
tokens) 42 % sampled at temperature 1 and 50 % at 0.6, one of eight samples right in 89 %, 20 % of the traces cut off,
0.28 nats a token; of four numbers (160 tokens) 12 %, 21 %, 50 %, 22 %, 0.36 nats.
"""

import argparse
import itertools
import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from covgrpo.errors import UserError
from covgrpo.evaluation import EvalSettings, evaluate
from covgrpo.evaluation.evaluate import encode_prompt
from covgrpo.hardware import autocast
from covgrpo.models import load_model
from covgrpo.tasks import Problem, PromptFormat, Task, is_eval_question
from covgrpo.tasks.base import derived_seed
from covgrpo.tasks.countdown import CountdownTask
from covgrpo.tasks.countdown_tries import random_trace
from covgrpo.verify import VerifierPool

CHARACTERS = {"compact": "0123456789+-*/()=: ", "tries": "0123456789+-*/=: x;!"}
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
# the last question alone: whatever else a prompt holds, the model has never seen
CHAT_TEMPLATE = (
    "{% set asked = messages | selectattr('role', 'equalto', 'user') | list %}"
    "{{ bos_token + asked[-1]['content'] + ':' }}"
)
NUM_DRAWS = 5  # of the training problems, each with an answer of its own
IGNORED = -100
DRAWN_AT_ONCE = 1_000
# what an option is where it is not given
DEFAULTS: dict[str, dict[str, Any]] = {
    "compact": {"steps": 2200, "batch_size": 64, "decay_steps": None, "harder": 0.0},
    "tries": {"steps": 1100, "batch_size": 48, "decay_steps": 200, "harder": 0.25},
}
NUM_PARTS = {"compact": 1, "tries": 3}  # of a batch, by length: traces differ, and padding costs time
MAX_LENGTHS = {"compact": 256, "tries": 512}


def make_tokenizer(style: str = "compact") -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *CHARACTERS[style]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[-1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    names = {f"{token.strip('<>')}_token": token for token in SPECIAL}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side="left", clean_up_tokenization_spaces=False, **names
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(
    tokenizer: PreTrainedTokenizerFast, seed: int, max_length: int = MAX_LENGTHS["compact"]
) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=max_length,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def make_task(options: argparse.Namespace) -> CountdownTask:
    given = {name: getattr(options, name) for name in ("numbers", "largest", "max_target")}
    return CountdownTask(style=options.style, **{k: v for k, v in given.items() if v is not None})


def training_rows(task: Task, tokenizer: Any, seed: int, num_problems: int) -> tuple[Tensor, Tensor]:
    """Token ids and labels [rows, length], padded on the right: problems with several of the answers that work."""
    prompt_format, rows = PromptFormat(), []
    for draw in range(NUM_DRAWS):
        for problem in task.problems("train", num_problems, NUM_DRAWS * seed + draw):
            prompt = encode_prompt(tokenizer, prompt_format.messages(problem))
            answer = tokenizer.encode(problem.answer, add_special_tokens=False)
            rows.append((prompt, [*answer, tokenizer.eos_token_id]))
    return padded(rows, tokenizer.pad_token_id)


def padded(rows: list[tuple[list[int], list[int]]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids and labels [rows, length] of prompts and answers; the answer alone is learnt."""
    length = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), length), pad_id)
    labels = torch.full((len(rows), length), IGNORED)
    for i, (prompt, answer) in enumerate(rows):
        ids[i, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[i, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    return ids, labels


def batches(ids: Tensor, labels: Tensor, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        for rows in torch.randperm(len(ids), generator=generator).split(size):
            yield ids[rows], labels[rows]


def train_problems(task: CountdownTask, seed: int) -> Iterator[Problem]:
    """Problems of the train split without end, with replacement, as often as the task draws them."""
    for part in itertools.count():
        for problem in task.draws(DRAWN_AT_ONCE, derived_seed("problems", seed, part)):
            if not is_eval_question(problem.question, task.eval_fraction):
                yield problem


def trace_batches(
    task: CountdownTask, tokenizer: Any, size: int, seed: int, harder: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids and labels of random traces, each seen once; a fraction ``harder`` of the problems has one number more."""
    prompt_format = PromptFormat()
    rng = random.Random(derived_seed("traces", seed))  # noqa: S311 (not cryptography)
    tasks = [task, replace(task, numbers=task.numbers + 1)] if harder else [task]
    streams = [train_problems(each, seed) for each in tasks]
    while True:
        rows = []
        for _ in range(size):
            which = int(rng.random() < harder)
            problem = next(streams[which])
            trace = tokenizer.encode(random_trace(tasks[which], problem, rng), add_special_tokens=False)
            rows.append((encode_prompt(tokenizer, prompt_format.messages(problem)), [*trace, tokenizer.eos_token_id]))
        yield padded(rows, tokenizer.pad_token_id)


def rate(step: int, options: argparse.Namespace) -> float:
    """The learning rate of step 0, 1, ... as a fraction of its peak, behind a short warm-up.

    A cosine to zero over all steps; with ``decay_steps`` 1, and a straight line to zero over the last ones.
    """
    warmup = min(50, options.steps // 10 + 1)
    if options.decay_steps is None:
        return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / options.steps)))
    return min((step + 1) / warmup, 1.0, (options.steps - step) / options.decay_steps)


def split_by_length(ids: Tensor, labels: Tensor, pad_id: int, num_parts: int) -> list[tuple[Tensor, Tensor]]:
    """Rows of like length together, without the padding that none of them needs."""
    lengths = (ids != pad_id).sum(1)
    parts = lengths.argsort(stable=True).tensor_split(num_parts)
    return [(ids[rows, : lengths[rows].max()], labels[rows, : lengths[rows].max()]) for rows in parts if len(rows)]


def backward(model: LlamaForCausalLM, ids: Tensor, labels: Tensor, num_parts: int) -> float:
    """Gradient of the mean loss over the batch's tokens, part by part; returns that loss in nats."""
    pad_id = model.config.pad_token_id
    parts = split_by_length(ids, labels, pad_id, num_parts) if num_parts > 1 else [(ids, labels)]
    total, learnt = 0.0, (labels != IGNORED).sum()
    for part_ids, part_labels in parts:
        with autocast(ids.device):
            loss = model(input_ids=part_ids, labels=part_labels).loss
        share = loss * ((part_labels != IGNORED).sum() / learnt)
        share.backward()
        total += share.item()
    return total


def pretrain(model: LlamaForCausalLM, drawn: Iterator[tuple[Tensor, Tensor]], options: argparse.Namespace) -> None:
    """AdamW on batches of ids and labels."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(rate, options=options))
    model.train()
    start = time.perf_counter()
    for step in range(1, options.steps + 1):
        loss = backward(model, *next(drawn), NUM_PARTS[options.style])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 0 or step == options.steps:
            print(f"step {step}: loss {loss:.3f}, {time.perf_counter() - start:.0f} s", flush=True)
    model.eval()


def held_out_accuracy(folder: Path, task: CountdownTask, num_problems: int) -> str:
    """Of the model as saved, in words."""
    model, tokenizer = load_model(str(folder))
    problems = task.problems("eval", num_problems, seed=0)
    # room for four tries: 96 characters for three numbers, 160 for four
    length = 64 * task.numbers - 96 if task.style == "tries" else max(len(problem.answer) for problem in problems) + 4
    settings = EvalSettings(max_completion_length=length)
    with VerifierPool(task.verifier) as pool:
        found = evaluate(model, tokenizer, problems, [], PromptFormat(), pool, settings)
    parts = {"greedy": found.greedy, "sampled": found.sampled}
    texts = [f"{name} {part.accuracy:.3f} ({part.low:.3f} to {part.high:.3f})" for name, part in parts.items() if part]
    return f"held-out accuracy over {found.n} problems: {', '.join(texts)}; {found.entropy:.3f} nats a token"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="must not exist")
    parser.add_argument("--style", choices=sorted(CHARACTERS), default="compact", help="the task's style")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="optimizer steps; more give a better model (2200; tries: 1100)")
    parser.add_argument(
        "--decay-steps", type=int, help="last steps, with a falling rate (all, as a cosine; tries: 200)"
    )
    parser.add_argument("--batch-size", type=int, help="problems in each step (64; tries: 48)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="at its peak")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--problems", type=int, default=10_000, help="compact: training problems of a draw at most")
    parser.add_argument("--harder", type=float, help="tries: fraction of problems with one number more (0.25)")
    parser.add_argument("--eval-problems", type=int, default=500)
    for name in ("numbers", "largest", "max-target"):
        parser.add_argument(f"--{name}", type=int, help="the task's parameter")
    options = parser.parse_args(arguments)
    for name, value in DEFAULTS[options.style].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def check(options: argparse.Namespace) -> None:
    positive = ["steps", "batch_size", "learning_rate", "threads", "problems", "eval_problems"]
    for name in positive + ["decay_steps"] * (options.decay_steps is not None):
        if not getattr(options, name) > 0:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be above 0.")
    if not 0.0 <= options.harder < 1.0:
        raise UserError(f"--harder is {options.harder}; it must be at least 0 and below 1.")
    if options.harder and options.style != "tries":
        raise UserError(f"--harder is {options.harder}, which --style {options.style} does not have.")
    if options.output.exists():
        raise UserError(f"--output: {options.output} exists already; give the name of a new folder.")


def training_batches(
    task: CountdownTask, tokenizer: Any, options: argparse.Namespace
) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids and labels, without end."""
    if options.style == "tries":
        return trace_batches(task, tokenizer, options.batch_size, options.seed, options.harder)
    rows = training_rows(task, tokenizer, options.seed, options.problems)
    print(f"{len(rows[0])} solved problems", flush=True)
    return batches(*rows, options.batch_size, options.seed)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    check(options)
    torch.set_num_threads(options.threads)
    task, tokenizer = make_task(options), make_tokenizer(options.style)
    model = make_model(tokenizer, options.seed, MAX_LENGTHS[options.style])
    print(f"{task.spec}: {model.num_parameters():,} parameters", flush=True)
    pretrain(model, training_batches(task, tokenizer, options), options)
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    for numbers in (task.numbers, task.numbers + 1)[: 1 + bool(options.harder)]:
        asked = replace(task, numbers=numbers)
        print(f"{asked.spec}: {held_out_accuracy(options.output, asked, options.eval_problems)}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
