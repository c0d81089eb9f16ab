"""Where the time of a step goes; nothing of what is computed changes."""

import time
from collections import defaultdict
from typing import Any

import torch
from trl import GRPOTrainer


class PhaseTimes(GRPOTrainer):
    """Mix-in that adds up ``seconds`` by phase: sampling, scoring (log-probs without gradient), reward, preparing (all
    of these and what lies between them).
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self.seconds: defaultdict[str, float] = defaultdict(float)
        super().__init__(*args, **kwargs)

    def _timed(self, phase: str, method: Any, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            self.seconds[phase] += time.perf_counter() - started

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        return self._timed("sampling", super()._generate_single_turn, *args, **kwargs)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        return self._timed("reward", super()._calculate_rewards, *args, **kwargs)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        score = super()._get_per_token_logps_and_entropies
        if torch.is_grad_enabled():
            return score(*args, **kwargs)
        return self._timed("scoring", score, *args, **kwargs)

    def _prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
        return self._timed("preparing", super()._prepare_inputs, *args, **kwargs)
