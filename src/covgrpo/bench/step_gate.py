"""Time the parts of a training step; nothing of what is computed changes."""

import time
from typing import Any

from transformers import TrainerCallback
from trl import GRPOTrainer

from covgrpo.bench.case import PHASES
from covgrpo.hardware import wait_for_device
from covgrpo.trl.timing import Phases


class TimedPhases(GRPOTrainer):
    """Mix-in for a ``GRPOTrainer``: the seconds by phase, and it can be handed another trainer's completions."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.bench_phases = Phases(wait_for_device)
        super().__init__(*args, **kwargs)
        self.drawn: list[list[int]] = []
        self.num_drawn_tokens = 0  # that the trainer sampled itself, handed completions or not
        self.handed: list[list[int]] | None = None
        self.prompts: list[list[int]] = []
        self.rewards: Any = None

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        with self.bench_phases.timed("sampling"):
            result = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        self.num_drawn_tokens = sum(map(len, result[0]))
        if self.handed is not None:
            # Sampled and timed as ever, then set aside: the update is on the same tokens on both sides.
            result = self.handed, None, *result[2:]
        self.drawn = result[0]
        self.prompts = prompt_ids
        return result

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        with self.bench_phases.timed("reward"):
            self.rewards = super()._calculate_rewards(*args, **kwargs)
        return self.rewards

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        return self.bench_phases.scoring(super()._get_per_token_logps_and_entropies, *args, **kwargs)

    def _prepare_inputs(self, *args: Any, **kwargs: Any) -> Any:
        with self.bench_phases.timed("preparing"):
            return super()._prepare_inputs(*args, **kwargs)


class StepGate(TrainerCallback):
    """Holds the trainer before each step until it is released, and reports each step when it has ended."""

    def __init__(self, connection: Any):
        self.connection = connection
        self.trainer: Any = None
        self._started = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Wait for ``("step", completions or None)``."""
        self.connection.send(("ready", None))
        _, self.trainer.handed = self.connection.recv()
        self.trainer.bench_phases.seconds.clear()
        wait_for_device()
        self._started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Send the step's record."""
        wait_for_device()
        total = time.perf_counter() - self._started
        self.connection.send(("step", step_record(self.trainer, total)))


def step_record(trainer: Any, total_s: float) -> dict[str, Any]:
    """Seconds by phase, tokens, and what shows that both sides did the same step."""
    seconds = dict(trainer.bench_phases.seconds)
    preparing = seconds.pop("preparing", 0.0)
    phases = {phase: seconds.get(phase, 0.0) for phase in PHASES}
    phases["rest"] = max(preparing - phases["sampling"] - phases["scoring"] - phases["reward"], 0.0)
    phases["update"] = total_s - preparing
    groups = trainer.rewards.nansum(dim=1).view(-1, trainer.num_generations)
    return {
        "step_s": total_s,
        "phases_s": phases,
        "completions": trainer.drawn,
        "drawn_tokens": trainer.num_drawn_tokens,
        "prompts": trainer.prompts[:: trainer.num_generations],
        "reward": groups.mean().item(),
        "has_advantage": (groups != groups[:, :1]).any(dim=1).tolist(),
    }
