"""Metrics of the tokens that a step trained on; nothing that is trained changes.

Every micro-batch leaves its valid tokens behind; at the end of the optimizer step they are gathered from all processes
and summed up, so that no number depends on how the step was split.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import TrainerCallback

from covgrpo.metrics import StepTokens, summarise
from covgrpo.trl.entropy_probe import EntropyProbe
from covgrpo.trl.gathering import gather_column
from covgrpo.trl.micro_batch import MicroBatch
from covgrpo.trl.timing import Phases

_TIMES = ("sampling", "scoring", "reward")


class StepLog(TrainerCallback):
    """Collects a step's tokens and writes the metrics of ``docs/metrics.md`` where TRL keeps its own.

    Args:
        accelerator: of the trainer.
        metrics: TRL's lists of a step's values by name.
        phases: the trainer's times.
        probe: measures what an update does to the entropy.
        more: further metrics of a step.

    """

    def __init__(
        self,
        accelerator: Accelerator,
        metrics: dict[str, list[float]],
        phases: Phases,
        probe: EntropyProbe,
        more: Callable[[], dict[str, float]] = dict,
    ):
        self.accelerator, self.metrics, self.phases, self.probe, self.more = accelerator, metrics, phases, probe, more
        self.tokens: StepTokens | None = None  # of the latest optimizer step, on the CPU
        self._parts: list[dict[str, Tensor]] = []
        self._entropies: list[float] = []
        self._weighted_covariance = 0.0
        self._started, self._probing_s = 0.0, 0.0
        self._seconds: dict[str, float] = {}

    def keep(self, micro: MicroBatch) -> None:
        """Take in a micro-batch whose loss has been computed."""
        if micro.logps_BT is not None and micro.entropies_BT is not None:
            self._parts.append(_columns(micro, micro.logps_BT, micro.entropies_BT))
            self.probe.keep(micro.inputs)

    def put_entropy(self) -> None:
        """Put the entropy over all tokens of the steps in place of TRL's mean over micro-batches."""
        if self._entropies:
            self.metrics["entropy"], self._entropies = self._entropies, []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self.phases.seconds.clear()
        self._started = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        """Sum the step up, while the policy is still the one that was scored."""
        self._seconds, self._probing_s = dict(self.phases.seconds), 0.0
        self._summarise(optimizer.param_groups[0]["lr"])
        if self.probe.is_due(state.global_step + 1):
            started = time.perf_counter()
            self.probe.before()
            self._probing_s = time.perf_counter() - started

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Let the probe see the update."""
        self.probe.stepped()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Write the times, and what the probe has found."""
        seconds = self._seconds
        times = {f"time/{phase}": seconds.get(phase, 0.0) for phase in _TIMES}
        total = time.perf_counter() - self._started
        times["time/update"] = total - self._probing_s - seconds.get("preparing", 0.0)
        self._append(times)
        self._append(self.probe.after(self._weighted_covariance))

    def _summarise(self, learning_rate: float) -> None:
        parts, self._parts = self._parts, []
        if not parts:
            return
        self.tokens = StepTokens.join(parts, lambda values: gather_column(self.accelerator, values))
        summary = summarise(self.tokens)
        if not summary:
            return
        self._entropies.append(summary.pop("entropy"))
        self._weighted_covariance = summary["cov/weighted"]
        # dH = -eta Cov(log pi, w A), for natural policy gradient     (arXiv 2505.22617)
        summary["entropy/predicted"] = -learning_rate * self._weighted_covariance
        self._append(summary)
        self._append(self.more())

    def _append(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.metrics[name].append(value)


def _columns(micro: MicroBatch, logps: Tensor, entropies: Tensor) -> dict[str, Tensor]:
    """The valid tokens of a micro-batch in columns of :class:`StepTokens`."""
    rollout = micro.rollout
    valid, advantages = rollout.mask_BT.bool(), rollout.advantages_B
    by_row = {"row": rollout.row_B, "group": rollout.group_B}
    tokens = {
        "position": torch.arange(valid.shape[1], device=valid.device).expand_as(valid),
        "token": micro.inputs["completion_ids"],
        "logps": logps if rollout.logps_BT is None else rollout.logps_BT,
        "advantages": advantages if advantages.dim() > 1 else advantages[:, None].expand_as(valid),
        "weights": torch.ones_like(logps) if rollout.weights_BT is None else rollout.weights_BT,
        "entropies": entropies,
        **{name: values[:, None].expand_as(valid) for name, values in by_row.items()},
    }
    if rollout.c_BT is not None:
        tokens["c"] = rollout.c_BT
    return {name: values[valid] for name, values in tokens.items()}
