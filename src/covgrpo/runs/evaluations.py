"""Evaluations while a run goes on: ``evaluations.jsonl``, before the first step, every so often, after the last."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback

from covgrpo.processes import from_first
from covgrpo.runs.record.folder import RunFolder

# (model, sampled completions a problem) -> one record for each temperature
Measure = Callable[[Any, int], list[dict[str, Any]]]


@dataclass
class PeriodicEvaluation(TrainerCallback):
    """Evaluates on all processes at once; draws nothing from the generators that training uses.

    Args:
        run: where to write; ``None`` on processes that are not the first.
        measure: evaluates a model, this process's share of it; gives the results of all.
        every: steps between evaluations.
        steps: of the whole run; the last is evaluated whatever ``every`` says.
        samples: completions a problem and temperature after the last step.
        samples_between: the same before that.
        measure_other: evaluates it on the problems of another task, under ``other`` in the record.
        leave_out: told the seconds that an evaluation took, for whoever times steps.

    """

    run: RunFolder | None
    measure: Measure
    every: int
    steps: int
    samples: int
    samples_between: int
    measure_other: Measure | None = None
    leave_out: Callable[[float], None] = lambda seconds: None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Evaluate the model that training starts from; a resumed run has that already."""
        if state.global_step == 0 and from_first(self.run is not None and not self.run.read_evaluations()):
            self._evaluate(0, model, self.samples_between)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Evaluate where it is time to, before the step's checkpoint is written."""
        if state.global_step == self.steps:
            self._evaluate(state.global_step, model, self.samples)
        elif state.global_step % self.every == 0:
            self._evaluate(state.global_step, model, self.samples_between)

    def _evaluate(self, step: int, model: Any, samples: int) -> None:
        since = time.perf_counter()
        record = {"step": step, **_counted(self.measure(model, samples))}
        if self.measure_other is not None:
            record["other"] = _counted(self.measure_other(model, samples))
        if self.run is not None:
            self.run.append_evaluation(record)
        self.leave_out(time.perf_counter() - since)


def _counted(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The results at each temperature, with the number of problems."""
    return {"n": len(results[0]["correct"]), "results": results}
