"""The metrics of ``docs/metrics.md`` for stock trainers of TRL's, as a mix-in."""

from typing import Any

from torch import Tensor, nn
from trl import GRPOTrainer

from covgrpo.metrics import StepTokens
from covgrpo.trl.entropy_probe import EntropyProbe
from covgrpo.trl.gathering import row_places
from covgrpo.trl.micro_batch import MicroBatch
from covgrpo.trl.rollout import Rollout
from covgrpo.trl.rollout_log import log_of
from covgrpo.trl.step_log import StepLog
from covgrpo.trl.timing import Phases
from covgrpo.trl.weigher import attach_covariance


class TokenDiagnostics(GRPOTrainer):
    """Mix-in that logs the metrics of ``docs/metrics.md``; put it before the trainer's class.

    ``step_tokens`` are the tokens of the latest optimizer step (:class:`covgrpo.metrics.StepTokens`), on the CPU.
    ``entropy_probe_steps`` above 0 measures every so many steps what the update did to the entropy of its own tokens,
    at the cost of two forward passes without gradient.
    """

    entropy_probe_steps: int = 0
    _micro: MicroBatch | None = None  # the one under the loss

    def __init__(self, *args: Any, **kwargs: Any):
        self.phases = Phases()
        super().__init__(*args, **kwargs)
        score = self._get_per_token_logps_and_entropies
        probe = EntropyProbe(self.accelerator, self.model, score, lambda: self.entropy_probe_steps)
        self.step_log = StepLog(self.accelerator, self._metrics["train"], self.phases, probe)
        self.add_callback(self.step_log)

    @property
    def step_tokens(self) -> StepTokens | None:
        """The tokens of the latest optimizer step."""
        return self.step_log.tokens

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        with self.phases.timed("sampling"):
            return super()._generate_single_turn(*args, **kwargs)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        with self.phases.timed("reward"):
            return super()._calculate_rewards(*args, **kwargs)

    def _prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
        with self.phases.timed("preparing"):
            return super()._prepare_inputs(*args, **kwargs)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        if self.model.training:
            self.rollout_log = log_of(self)
            rows = row_places(self, len(inputs))
            rollout = Rollout.sampled(batch, rows, self.num_generations, self.state.global_step)
            attach_covariance(self.accelerator, rollout)
            rollout.write(batch)
        return batch

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        scores = self.phases.scoring(super()._get_per_token_logps_and_entropies, *args, **kwargs)
        return scores if self._micro is None else self._micro.scored(*scores)

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        self._micro = MicroBatch.of(inputs, self.state.global_step) if self.model.training else None
        try:
            loss: Tensor = super()._compute_loss(model, inputs)
            if self._micro is not None:
                self.step_log.keep(self._micro)
        finally:
            self._micro = None
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as TRL, with the entropy over all tokens of the steps in place of the mean over micro-batches."""
        if self.model.training:
            self.step_log.put_entropy()
        super().log(logs, start_time)
