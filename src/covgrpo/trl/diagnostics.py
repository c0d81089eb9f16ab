"""Metrics of the tokens that a step trained on, for our trainer and for stock TRL's; nothing that is trained changes.

Every micro-batch leaves its valid tokens behind; at the end of the optimizer step they are gathered from all processes
and summed up, so that no number depends on how the step was split.
"""

import time
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from trl import GRPOTrainer

from covgrpo.core import token_covariance
from covgrpo.metrics import StepTokens, summarise
from covgrpo.trl.entropy_probe import EntropyProbe
from covgrpo.trl.gathering import gather_column, gather_rows, local_part, row_keys, valid_tokens
from covgrpo.trl.timing import PhaseTimes

_TIMES = ("sampling", "scoring", "reward")


class TokenDiagnostics(PhaseTimes, GRPOTrainer):
    """Mix-in that logs the metrics of ``docs/metrics.md``; put it before the trainer's class.

    ``step_tokens`` are the tokens of the latest optimizer step (:class:`covgrpo.metrics.StepTokens`), on the CPU.
    ``entropy_probe_steps`` above 0 measures every so many steps what the update did to the entropy of its own tokens,
    at the cost of two forward passes without gradient.
    """

    step_tokens: StepTokens | None = None
    entropy_probe_steps: int = 0

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._parts: list[dict[str, Tensor]] = []
        self._scored: tuple[Tensor, Tensor] | None = None
        self._step_entropies: list[float] = []
        self._probe = EntropyProbe(self)
        self.add_callback(_StepEnds(self))

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        if self.model.training:
            batch.setdefault("row_key", row_keys(self, len(inputs)))
            self._attach_covariance(batch)
        return batch

    def _attach_covariance(self, batch: dict[str, Any]) -> None:
        """Leave ``token_cov`` (B, T) where the log-probs of sampling are known: its groups may be split afterwards."""
        logps = batch.get("old_per_token_logps", batch.get("rollout_logps"))
        if "token_cov" in batch or logps is None or batch["advantages"].dim() > 1:
            return
        rows = gather_rows(self.accelerator, batch, logps, batch["row_key"] // self.num_generations)
        c = token_covariance(*(rows[name] for name in ("logps", "advantages", "mask", "ids")))
        batch["token_cov"] = local_part(self.accelerator, c, logps)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        scores = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if torch.is_grad_enabled() and scores[1] is not None:
            self._scored = scores[0].detach(), scores[1].detach()
        return scores

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        self._scored = None
        loss = super()._compute_loss(model, inputs)
        if self.model.training and self._scored is not None:
            self._parts.append(self._columns(inputs, *self._scored))
            self._probe.keep(inputs)
        return loss

    def _columns(self, inputs: dict[str, Any], logps: Tensor, entropies: Tensor) -> dict[str, Tensor]:
        """The valid tokens of a micro-batch in columns of :class:`StepTokens`."""
        valid = valid_tokens(inputs).bool()
        advantages = inputs.get("unweighted", inputs["advantages"])
        by_row = {"row": inputs["row_key"], "group": inputs["row_key"] // self.num_generations}
        tokens = {
            "position": torch.arange(valid.shape[1], device=valid.device).expand_as(valid),
            "token": inputs["completion_ids"],
            "logps": inputs.get("old_per_token_logps", inputs.get("rollout_logps", logps)),
            "advantages": advantages if advantages.dim() > 1 else advantages[:, None].expand_as(valid),
            "weights": inputs.get("token_weights", torch.ones_like(logps)),
            "entropies": entropies,
            **{name: values[:, None].expand_as(valid) for name, values in by_row.items()},
        }
        if "token_cov" in inputs:
            tokens["c"] = inputs["token_cov"]
        return {name: values[valid] for name, values in tokens.items()}

    def _before_optimizer(self, learning_rate: float) -> None:
        parts, self._parts = self._parts, []
        if not parts:
            return
        self.step_tokens = StepTokens.join(parts, lambda values: gather_column(self.accelerator, values))
        summary = summarise(self.step_tokens)
        if not summary:
            return
        self._step_entropies.append(summary.pop("entropy"))
        # dH = -eta Cov(log pi, w A), for natural policy gradient     (arXiv 2505.22617)
        summary["entropy/predicted"] = -learning_rate * summary["cov/weighted"]
        self._append(summary)
        hold = getattr(self, "entropy_hold", None)
        if hold is not None:
            self._append(hold.metrics())

    def _append(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._metrics["train"][name].append(value)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as TRL, with the entropy over all tokens of the steps in place of the mean over micro-batches."""
        if self.model.training and self._step_entropies:
            self._metrics["train"]["entropy"], self._step_entropies = self._step_entropies, []
        super().log(logs, start_time)


class _StepEnds(TrainerCallback):
    """Tells the mix-in where an optimizer step begins and ends."""

    def __init__(self, trainer: TokenDiagnostics):
        self.trainer = trainer
        self._started = 0.0
        self._seconds: dict[str, float] = {}
        self._probing_s = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.trainer.seconds.clear()
        self._started = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        trainer = self.trainer
        self._seconds, self._probing_s = dict(trainer.seconds), 0.0
        trainer._before_optimizer(trainer.optimizer.param_groups[0]["lr"])
        every = trainer.entropy_probe_steps
        if every and (state.global_step + 1) % every == 0:
            started = time.perf_counter()
            trainer._probe.before()
            self._probing_s = time.perf_counter() - started

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.trainer._probe.stepped()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        trainer, seconds = self.trainer, self._seconds
        times = {f"time/{phase}": seconds.get(phase, 0.0) for phase in _TIMES}
        total = time.perf_counter() - self._started
        times["time/update"] = total - self._probing_s - seconds.get("preparing", 0.0)
        trainer._append(times)
        trainer._append(trainer._probe.after())
