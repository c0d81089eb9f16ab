"""A run's held-out problems, those of another task beside them, and how its model is measured on them."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covgrpo.errors import UserError
from covgrpo.files import load_json
from covgrpo.runs.options import TrainOptions
from covgrpo.tasks import Problem, PromptFormat, Task, load_task
from covgrpo.tasks.base import vote_of


@dataclass(frozen=True)
class OtherProblems:
    """Held-out problems of ``eval_task`` and its own solved examples, from its train split.

    ``options`` are the run's, but for the completion's length.
    """

    options: TrainOptions
    task: Task
    examples: list[Problem]
    problems: list[Problem]


def load_other(options: TrainOptions) -> OtherProblems | None:
    """The problems of ``eval_task``, as many and by the same seed as the run's own; ``None`` without one.

    Raises:
        UserError: no such task, or it lacks problems.
    """
    if not options.eval_task:
        return None
    task = load_task(options.eval_task)
    # One more than a prompt shows, as a question is never its own example.
    examples = task.problems("train", options.num_examples + 1, options.seed) if options.num_examples else []
    length = options.eval_task_length or options.max_completion_length
    measured = dataclasses.replace(options, max_completion_length=length)
    return OtherProblems(measured, task, examples, task.problems("eval", options.eval_problems, options.seed))


@dataclass(frozen=True)
class HeldOut:
    """A run's held-out problems and how they are asked.

    ``vote``: what of an answer counts in a majority vote. ``process`` of ``processes`` measures its share of the
    problems, and gets the results of all.
    """

    options: TrainOptions
    problems: list[Problem]
    examples: list[Problem]
    prompt_format: PromptFormat
    tokenizer: Any
    pool: Any
    vote: Callable[[str], str] = str
    process: int = 0
    processes: int = 1

    def of_other(self, other: OtherProblems, pool: Any) -> "HeldOut":
        """Those of the other task, asked in the run's format; ``pool`` is of that task's verifier."""
        its = {"options": other.options, "problems": other.problems, "examples": other.examples, "pool": pool}
        return dataclasses.replace(self, **its, vote=vote_of(other.task))

    def evaluate(self, model: Any, progress: Callable[[int, int], None]) -> dict[str, Any]:
        """Greedy and sampled accuracy with intervals."""
        from covgrpo.evaluation import evaluate

        return evaluate(model, **self._how(), progress=progress).to_dict()

    def at_temperatures(self, model: Any, samples: int) -> list[dict[str, Any]]:
        """Greedy, and ``samples`` completions a problem at each of the run's evaluation temperatures."""
        from covgrpo.evaluation.evaluate import evaluate_temperatures

        temperatures = self.options.eval_temperatures or [self.options.temperature]
        wanted = {0.0: 1, **dict.fromkeys(temperatures, samples)}
        return evaluate_temperatures(model, **self._how(), samples=wanted, vote=self.vote)

    def _how(self) -> dict[str, Any]:
        from covgrpo.evaluation import EvalSettings

        settings = EvalSettings(
            samples=self.options.eval_samples,
            temperature=self.options.temperature,
            max_completion_length=self.options.max_completion_length,
            seed=self.options.seed,
            batch_size=self.options.eval_batch_size,
            bf16=self.options.bf16,
            process=self.process,
            processes=self.processes,
        )
        return {
            "tokenizer": self.tokenizer,
            "problems": self.problems,
            "examples": self.examples,
            "prompt_format": self.prompt_format,
            "pool": self.pool,
            "settings": settings,
        }


def kept_evaluation(path: Path) -> dict[str, Any]:
    """What ``eval.json`` of a run that goes on holds.

    Raises:
        UserError: it is damaged; measured again, ``before`` might be of a model that is trained already.
    """
    try:
        found = load_json(path)
        if not isinstance(found, dict) or not all(isinstance(value, dict) for value in found.values()):
            raise ValueError("no object of evaluations")
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {path} ({error}), which has the accuracy before training; put it back."
        ) from error
    return found
