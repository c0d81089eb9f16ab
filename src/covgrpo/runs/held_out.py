"""A run's held-out problems, and how its model is measured on them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from covgrpo.runs.options import TrainOptions
from covgrpo.tasks import Problem, PromptFormat


@dataclass(frozen=True)
class HeldOut:
    """A run's held-out problems and how they are asked."""

    options: TrainOptions
    problems: list[Problem]
    examples: list[Problem]
    prompt_format: PromptFormat
    tokenizer: Any
    pool: Any

    def evaluate(self, model: Any, progress: Callable[[int, int], None]) -> dict[str, Any]:
        """Greedy and sampled accuracy with intervals."""
        from covgrpo.evaluation import evaluate

        return evaluate(model, **self._how(), progress=progress).to_dict()

    def at_temperatures(self, model: Any, samples: int) -> list[dict[str, Any]]:
        """Greedy, and ``samples`` completions a problem at each of the run's evaluation temperatures."""
        from covgrpo.evaluation.evaluate import evaluate_temperatures

        temperatures = self.options.eval_temperatures or [self.options.temperature]
        return evaluate_temperatures(model, **self._how(), samples={0.0: 1, **dict.fromkeys(temperatures, samples)})

    def _how(self) -> dict[str, Any]:
        from covgrpo.evaluation import EvalSettings

        settings = EvalSettings(
            samples=self.options.eval_samples,
            temperature=self.options.temperature,
            max_completion_length=self.options.max_completion_length,
            seed=self.options.seed,
            batch_size=self.options.eval_batch_size,
            bf16=self.options.bf16,
        )
        return {
            "tokenizer": self.tokenizer,
            "problems": self.problems,
            "examples": self.examples,
            "prompt_format": self.prompt_format,
            "pool": self.pool,
            "settings": settings,
        }
