"""Model, prompts and rewards of a case."""

import json
import random
from collections.abc import Callable
from typing import Any

from covgrpo.bench.case import BenchCase


def load_case_model(case: BenchCase) -> tuple[Any, Any]:
    """Load model and tokenizer, cut to the layers asked for, ending completions where the case says."""
    from covgrpo.models import load_model

    model, tokenizer = load_model(case.model)
    if case.layers is not None:
        decoder = model.base_model
        decoder.layers = decoder.layers[: case.layers]
        model.config.num_hidden_layers = len(decoder.layers)
        if getattr(model.config, "layer_types", None):
            model.config.layer_types = model.config.layer_types[: case.layers]
    if case.lengths != "model":
        _end_at(case, model, tokenizer)
    return model, tokenizer


def _end_at(case: BenchCase, model: Any, tokenizer: Any) -> None:
    vocabulary = model.get_input_embeddings().num_embeddings
    # A row of the embedding that no token of the tokenizer has, or else its last one: practically never sampled.
    tokenizer.eos_token_id = min(len(tokenizer), vocabulary) - 1
    period = max(2, case.completion_length // 2)
    model.generation_config.eos_token_id = list(range(0, vocabulary, period)) if case.lengths == "ragged" else None


def prompts_of(case: BenchCase, tokenizer: Any) -> list[dict[str, Any]]:
    """Rows of the training set: enough prompts for every step."""
    from covgrpo.tasks import PromptFormat, load_task

    count = case.prompts_per_step * (case.steps + case.warmup)
    if case.prompt_length is not None:
        words = _single_token_words(tokenizer)
        draw = random.Random(case.seed)  # noqa: S311 (not cryptography)
        return [{"prompt": "".join(draw.choices(words, k=case.prompt_length))} for _ in range(count)]
    task = load_task(case.task, {})
    problems = task.problems("train", count + case.num_examples, case.seed)
    examples, problems = problems[: case.num_examples], problems[case.num_examples :]
    prompt_format = PromptFormat("plain", "Answer with the number only.", case.num_examples)
    rows = [
        {
            "prompt": prompt_format.messages(problem, examples),
            "payload": json.dumps(problem.payload),
            "problem_id": problem.id,
        }
        for problem in problems
    ]
    return (rows * -(-count // len(rows)))[:count]


def _single_token_words(tokenizer: Any) -> list[str]:
    """Words that stay one token each when they are joined."""
    texts = tokenizer.batch_decode([[index] for index in range(len(tokenizer))])
    spaced = [text for text in texts if text[:1] == " " and text[1:].isascii() and text[1:].isalpha()]
    return spaced or [text for text in texts if len(text) == 1 and text.isalnum()]


def fixed_reward(zero_share: float, num_generations: int) -> Callable[..., list[float]]:
    """Rewards by position: every other completion 1, but in the first ``zero_share`` of the groups all 0."""

    def reward(completions: list[Any], **_: Any) -> list[float]:
        without = round(zero_share * (len(completions) // num_generations))
        return [
            float(row // num_generations >= without and row % num_generations % 2 == 0)
            for row in range(len(completions))
        ]

    return reward
