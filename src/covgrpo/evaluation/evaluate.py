"""Accuracy of a model on a task's held-out problems: greedy and sampled, with intervals over problems."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, TypeVar

import torch

from covgrpo.core.noise import token_noise
from covgrpo.evaluation.at_k import majority
from covgrpo.evaluation.intervals import bootstrap_mean, wilson
from covgrpo.hardware import autocast
from covgrpo.processes import gathered
from covgrpo.rollouts import SamplingSettings, sample
from covgrpo.tasks import Problem, PromptFormat, get_answer_format
from covgrpo.verify import VerifierPool

_T = TypeVar("_T")


@dataclass(frozen=True)
class EvalSettings:
    """How to evaluate.

    Args:
        samples: sampled completions for each problem; 0: greedy only.
        temperature: of the sampled completions.
        max_completion_length: tokens.
        seed: of sampling and bootstrap.
        batch_size: completions forwarded at once.
        bf16: bfloat16 autocast; ``None``: where the hardware has it.
        process: number of this process; it takes every ``processes``-th problem.
        processes: how many there are; all get the results.

    """

    samples: int = 4
    temperature: float = 1.0
    max_completion_length: int = 64
    seed: int = 0
    batch_size: int = 256
    bf16: bool | None = None
    process: int = 0
    processes: int = 1


@dataclass(frozen=True)
class Accuracy:
    """A mean score as a fraction, with its 95 % interval."""

    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """Result over ``n`` problems.

    ``greedy``: Wilson score interval where every score is 0 or 1, bootstrap over problems otherwise. ``sampled``: mean
    over problems of the mean over samples, bootstrap over problems (Wilson over problems where all are 0 or all 1).
    ``entropy``: mean over the sampled tokens of the policy's entropy in nats. ``unscored``: completions whose verifier
    failed; they count as 0.
    """

    n: int
    seed: int
    samples: int
    temperature: float
    greedy: Accuracy
    sampled: Accuracy | None
    entropy: float | None
    mean_length: float
    unscored: int

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict."""
        return asdict(self)


@dataclass(frozen=True)
class _Completion:
    score: float
    answer: str
    entropies: list[float]  # one a token
    failed: bool


@dataclass(frozen=True)
class _Scored:
    scores: list[float]
    answers: list[str]
    entropies: list[float]
    lengths: list[int]
    unscored: int


def evaluate(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    examples: Sequence[Problem],
    prompt_format: PromptFormat,
    pool: VerifierPool,
    settings: EvalSettings,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluate ``model`` on ``problems``.

    Args:
        model: causal language model.
        tokenizer: its tokenizer, with a chat template.
        problems: held-out problems.
        examples: solved examples for the prompt.
        prompt_format: how a problem becomes a prompt.
        pool: the task's verifier.
        settings: see :class:`EvalSettings`.
        progress: called with (completions done, completions in all).

    """
    total = len(problems) * (1 + settings.samples)
    report = progress or (lambda done, total: None)
    runner = _Runner(model, tokenizer, problems, examples, prompt_format, pool, settings)
    sampled = None
    with _eval_mode(model):
        greedy = runner.run(1, 0.0, lambda done: report(done, total))
        if settings.samples:
            later = len(problems)
            sampled = runner.run(settings.samples, settings.temperature, lambda done: report(later + done, total))
    parts = [greedy] if sampled is None else [greedy, sampled]
    lengths = [length for part in parts for length in part.lengths]
    return Evaluation(
        n=len(problems),
        seed=settings.seed,
        samples=settings.samples,
        temperature=settings.temperature,
        greedy=_accuracy([[score] for score in greedy.scores], settings.seed),
        sampled=None if sampled is None else _accuracy(_by_problem(sampled.scores, settings.samples), settings.seed),
        entropy=None if sampled is None else sum(sampled.entropies) / max(1, len(sampled.entropies)),
        mean_length=sum(lengths) / len(lengths),
        unscored=sum(part.unscored for part in parts),
    )


def evaluate_temperatures(
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    examples: Sequence[Problem],
    prompt_format: PromptFormat,
    pool: VerifierPool,
    settings: EvalSettings,
    samples: Mapping[float, int],
    vote: Callable[[str], str] = str,
) -> list[dict[str, Any]]:
    """Measure ``model`` at several temperatures on the same problems, with the same random numbers at each.

    Args:
        model: causal language model.
        tokenizer: its tokenizer, with a chat template.
        problems: held-out problems.
        examples: solved examples for the prompt.
        prompt_format: how a problem becomes a prompt.
        pool: the task's verifier.
        settings: see :class:`EvalSettings`; its ``samples`` and ``temperature`` are not read.
        samples: temperature -> completions a problem; temperature 0 is greedy.
        vote: what of an answer counts in a majority vote (:func:`covgrpo.tasks.base.vote_of`).

    Returns:
        One record for each temperature: ``temperature``, ``samples``, ``accuracy`` (mean score, a fraction),
        ``entropy`` (nats, mean over tokens), ``mean_length`` (tokens), ``unscored`` (completions whose verifier
        failed), and ``correct``: for each problem how many of its completions score above one half. With several
        samples also, for each problem, ``majority``: how many of them give its most frequent answer (0: none gives
        any), and ``majority_correct``: 1 if that answer scores above one half, else 0; equality and ties as in
        :func:`covgrpo.evaluation.at_k.majority`.

    """
    runner = _Runner(model, tokenizer, problems, examples, prompt_format, pool, settings)
    with _eval_mode(model):
        found = {temperature: runner.run(count, temperature) for temperature, count in samples.items()}
    return [
        {
            "temperature": temperature,
            "samples": samples[temperature],
            "accuracy": fmean(part.scores),
            "entropy": fmean(part.entropies) if part.entropies else None,
            "mean_length": fmean(part.lengths),
            "unscored": part.unscored,
            "correct": [sum(s > 0.5 for s in scores) for scores in _by_problem(part.scores, samples[temperature])],
            **(_votes(part, samples[temperature], vote) if samples[temperature] > 1 else {}),
        }
        for temperature, part in found.items()
    ]


def _votes(part: _Scored, repeats: int, vote: Callable[[str], str]) -> dict[str, list[int]]:
    """Size and correctness of each problem's most frequent answer."""
    sizes, correct = [], []
    texts = [vote(answer) for answer in part.answers]
    for scores, answers in zip(_by_problem(part.scores, repeats), _by_problem(texts, repeats), strict=True):
        place, size = majority(answers)
        sizes.append(size)
        correct.append(int(place is not None and scores[place] > 0.5))
    return {"majority": sizes, "majority_correct": correct}


def encode_prompt(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """Token ids of a chat prompt, with the generation prompt, as the trainer makes them."""
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    return list(encoded["input_ids"])


def eos_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every token id that ends a completion: the tokenizer's and the model's own."""
    own = model.generation_config.eos_token_id
    ids = [] if own is None else [own] if isinstance(own, int) else list(own)
    return tuple(dict.fromkeys([tokenizer.eos_token_id, *ids]))


@contextmanager
def _eval_mode(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@dataclass(frozen=True)
class _Runner:
    model: Any
    tokenizer: Any
    problems: Sequence[Problem]
    examples: Sequence[Problem]
    prompt_format: PromptFormat
    pool: VerifierPool
    settings: EvalSettings

    def run(self, repeats: int, temperature: float, report: Callable[[int], None] = lambda done: None) -> _Scored:
        """Draw and score ``repeats`` completions a problem, those of a problem next to each other.

        Several processes share the problems. ``report`` is told how many completions are done, as if all processes were
        as far as this one.
        """
        settings, total = self.settings, len(self.problems) * repeats
        mine = [(i, k) for i in range(settings.process, len(self.problems), settings.processes) for k in range(repeats)]
        device = next(self.model.parameters()).device
        generator = torch.Generator(device).manual_seed(settings.seed)
        done: list[_Completion] = []
        for start in range(0, len(mine), settings.batch_size):
            chunk = mine[start : start + settings.batch_size]
            noise = None
            if settings.processes > 1:
                # The generator's numbers go to the rows of a batch, and batches depend on the number of processes.
                ids = torch.tensor([i * repeats + k for i, k in chunk], device=device)
                noise = token_noise(settings.seed, ids, settings.max_completion_length)
            done += self._draw([i for i, _ in chunk], self._sampling(temperature), generator, noise)
            report(min(total, len(done) * settings.processes))
        rows = _in_order(gathered(done) if settings.processes > 1 else [done], len(self.problems), repeats)
        return _Scored(
            scores=[row.score for row in rows],
            answers=[row.answer for row in rows],
            entropies=[value for row in rows for value in row.entropies],
            lengths=[len(row.entropies) for row in rows],
            unscored=sum(row.failed for row in rows),
        )

    def _draw(
        self, chunk: list[int], sampling: SamplingSettings, generator: torch.Generator, noise: torch.Tensor | None
    ) -> list[_Completion]:
        """A scored completion for each of a few problems, by their numbers."""
        problems = {i: self.problems[i] for i in chunk}
        messages = {i: self.prompt_format.messages(problem, self.examples) for i, problem in problems.items()}
        prompts = {i: encode_prompt(self.tokenizer, text) for i, text in messages.items()}
        with autocast(generator.device, self.settings.bf16):
            drawn = sample(self.model, [prompts[i] for i in chunk], sampling, generator, noise)
        texts = self.tokenizer.batch_decode(drawn.token_ids, skip_special_tokens=True)
        extract = get_answer_format(self.prompt_format.answer_format).extract
        items = [(problems[i].payload, extract(text)) for i, text in zip(chunk, texts, strict=True)]
        verdicts = self.pool.score(items)
        return [
            _Completion(verdict.score, answer, entropies, verdict.failure is not None)
            for verdict, (_, answer), entropies in zip(verdicts, items, drawn.entropies, strict=True)
        ]

    def _sampling(self, temperature: float) -> SamplingSettings:
        return SamplingSettings(
            max_new_tokens=self.settings.max_completion_length,
            eos_token_ids=eos_ids(self.model, self.tokenizer),
            pad_token_id=self.tokenizer.pad_token_id,
            temperature=temperature,
        )


def _in_order(parts: list[list[_Completion]], problems: int, repeats: int) -> list[_Completion]:
    """The completions of all processes by problem: problem i is the (i // n)-th of process i mod n."""
    by_process = [_by_problem(part, repeats) for part in parts]
    return [row for i in range(problems) for row in by_process[i % len(parts)][i // len(parts)]]


def _by_problem(values: list[_T], repeats: int) -> list[list[_T]]:
    return [values[start : start + repeats] for start in range(0, len(values), repeats)]


def _accuracy(scores: list[list[float]], seed: int) -> Accuracy:
    means = [sum(values) / len(values) for values in scores]
    mean = sum(means) / len(means)
    # Where all problems agree the bootstrap would give an interval without width; Wilson's over problems has one.
    single = all(len(values) == 1 and values[0] in (0.0, 1.0) for values in scores)
    if single or mean in (0.0, 1.0):
        return Accuracy(mean, *wilson(round(sum(means)), len(means)))
    return Accuracy(mean, *bootstrap_mean(means, seed=seed))


def to_json(evaluation: Evaluation) -> str:
    """One JSON object."""
    return json.dumps(evaluation.to_dict(), indent=2)
