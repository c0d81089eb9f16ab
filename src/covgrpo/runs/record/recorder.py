"""Writes a run's records while TRL trains: metrics, samples, tokens, and what a signal asks for."""

import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainerCallback

from covgrpo.metrics import StepTokens, most_damped
from covgrpo.runs.record.folder import RunFolder
from covgrpo.runs.record.token_records import completion_record, histogram_record, token_records

# Logs that transformers holds in memory and writes into every checkpoint; metrics.jsonl has them all.
_LOGS_HELD = 10
_OF_ROLLOUT = ("reward", "completions/", "frac_reward_zero_std", "verifier/")
StepListener = Callable[[dict[str, Any]], None]


@dataclass
class StopRequest:
    """Which signal stops the run, if any. The first one lets the step finish; a second one ends the process.

    A signal may reach one process only, or several in different steps. All must leave the loop after the same step, as
    the next one begins with a collective, so they :meth:`agree` at the end of each.
    """

    signal: int | None = None  # the run's; the same on every process
    announce: Callable[[str], None] = print
    _received: int | None = None  # this process's
    _is_listening: bool = False

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Handle SIGINT and SIGTERM inside the block."""
        previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        self._is_listening = True
        try:
            yield self
        finally:
            self._is_listening = False
            for number, handler in previous.items():
                signal.signal(number, handler)

    def agree(self, accelerator: Any) -> bool:
        """Whether the run is to stop, on every process alike; a collective of one number where there are several."""
        if self.signal is None and self._is_listening:
            number = self._received or 0
            if accelerator.num_processes > 1:
                number = int(accelerator.gather(torch.tensor([number], device=accelerator.device)).max())
            self.signal = number or None
        return self.signal is not None

    def _on_signal(self, number: int, _frame: Any) -> None:
        if self._received is not None:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        self._received = number
        self.announce("stopping after this step with a checkpoint; once more to stop at once without one")
        if "TORCHELASTIC_RUN_ID" in os.environ:
            self.announce("torchrun waits 30 s for that, unless it was started with a longer --shutdown-timeout")


@dataclass
class LastStep(TrainerCallback):
    """Ends training after ``step`` with a checkpoint, as its own end would, where the schedule goes on beyond it."""

    step: int

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop where it is time to."""
        if state.global_step >= self.step:
            control.should_save = True
            control.should_training_stop = True


@dataclass
class RunRecorder(TrainerCallback):
    """One line in metrics.jsonl and histograms.jsonl for each step, a few completions in samples.jsonl, a few tokens in
    tokens.jsonl.

    Args:
        run: where to write; ``None`` on processes that are not the first.
        stop: checked at the end of each step.
        samples_per_step: completions kept.
        on_step: called with each metrics record.
        tokens_per_step: tokens kept, those with the smallest weight.
        on_completion: called with the step's kept completion of the largest advantage.

    """

    run: RunFolder | None
    stop: StopRequest
    samples_per_step: int
    on_step: StepListener
    tokens_per_step: int = 16
    on_completion: StepListener = lambda sample: None
    trainer: Any = None
    _since: float = field(default_factory=time.perf_counter)
    _kept_step: int = -1
    _rollout: dict[str, Any] = field(default_factory=dict)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock; a resumed run may go on in the middle of a rollout batch, whose values it takes up."""
        self._since = time.perf_counter()
        if self.run is not None and state.global_step:
            for record in self.run.read_metrics()[-1:]:
                self._keep_rollout(record)

    def leave_out(self, seconds: float) -> None:
        """Keep seconds that were no training out of the step's time."""
        self._since += seconds

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Record a step's logs."""
        if self.run is None or not logs or "loss" not in logs:
            return
        now = time.perf_counter()
        # A step that reuses a rollout batch has that batch's rewards.
        self._keep_rollout(logs)
        record = {"step": state.global_step, **self._rollout, **logs, "time/wall": now - self._since}
        self._since = now
        self.run.append_metrics(record)
        del state.log_history[:-_LOGS_HELD]
        self._record_samples(state.global_step)
        self._record_tokens(state.global_step)
        self.on_step(record)
        # transformers saves after this, so that a signal since the step's end is still in time, if it is one process's
        if self.trainer.accelerator.num_processes == 1:
            self.on_step_end(args, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop with a checkpoint if a signal came, to whichever process."""
        if self.stop.agree(self.trainer.accelerator):
            control.should_save = True
            control.should_training_stop = True

    def _keep_rollout(self, values: dict[str, Any]) -> None:
        self._rollout.update({name: value for name, value in values.items() if name.startswith(_OF_ROLLOUT)})

    def _record_samples(self, step: int) -> None:
        """Keep completions spread evenly over the latest rollout batch (TRL's own log of it).

        The last of several gives way to the one whose token has the smallest weight, which chance would rarely show.
        """
        logs = getattr(self.trainer, "rollout_log", None) or self.trainer._logs
        total = len(logs["completion"])
        count = min(self.samples_per_step, total)
        if self.run is None or count == 0 or step == self._kept_step:
            return
        self._kept_step = step
        rewards = {name: list(values) for name, values in logs["rewards"].items()}
        records = []
        chosen = sorted({i * total // count for i in range(count)})
        damped = self._most_damped()
        if damped is not None and len(chosen) > 1 and damped not in chosen:
            chosen = [*chosen[:-1], damped]
        for index in chosen:
            records.append(
                {
                    "step": step,
                    "prompt": _last_content(logs["prompt"][index]),
                    "completion": _last_content(logs["completion"][index]),
                    "rewards": {name: _finite(values[index]) for name, values in rewards.items()},
                    "advantage": _finite(logs["advantages"][index]),
                    **self._tokens_of(index),
                }
            )
        self.run.append_samples(records)
        self.on_completion(max(records, key=lambda record: abs(record["advantage"] or 0.0)))

    def _most_damped(self) -> int | None:
        """Place in the latest rollout batch of the completion with the most damped token, if this step has it."""
        tokens, first = self._latest()
        if tokens is None:
            return None
        rows = tokens.row[most_damped(tokens, 1)].tolist()
        return rows[0] - first if rows and rows[0] >= first else None

    def _tokens_of(self, index: int) -> dict[str, Any]:
        """The tokens of a completion of the latest rollout batch, where this step trained on it."""
        tokens, first = self._latest()
        return {} if tokens is None else completion_record(tokens, first + index, self.trainer.processing_class)

    def _latest(self) -> tuple[StepTokens | None, int]:
        """The step's tokens, and the first row of the latest rollout batch among them."""
        tokens: StepTokens | None = getattr(self.trainer, "step_tokens", None)
        size = self.trainer.args.generation_batch_size
        return tokens, int(tokens.row.max()) // size * size if tokens is not None and len(tokens) else 0

    def _record_tokens(self, step: int) -> None:
        tokens: StepTokens | None = getattr(self.trainer, "step_tokens", None)
        if self.run is None or tokens is None or len(tokens) == 0:
            return
        self.run.append_histograms(histogram_record(step, tokens))
        self.run.append_tokens(token_records(step, tokens, self.tokens_per_step, self.trainer.processing_class))


def _last_content(messages: Any) -> str:
    return messages if isinstance(messages, str) else str(messages[-1].get("content", ""))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
