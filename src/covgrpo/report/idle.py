"""A run in which nothing could be learnt: no two completions of a prompt ever earned different rewards."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

IDLE_STEPS = 10  # after so many without an advantage, from the first on, a run says so


def nothing_learnt(records: Iterable[Mapping[str, Any]]) -> str | None:
    """Say in one line that no step of a run had an advantage, and why; ``None`` where one had, or nothing is known.

    Args:
        records: lines of ``metrics.jsonl``.

    """
    steps = list(records)
    if not steps or any(record.get("frac_reward_zero_std") != 1.0 for record in steps):
        return None
    rewards = {repr(record.get("reward")) for record in steps}
    each = f"every reward was {rewards.pop()}" if len(rewards) == 1 else "rewards differed between prompts alone"
    return (
        f"nothing was learnt in {len(steps)} steps: no two completions of a prompt earned different rewards ({each}), "
        "so no completion had an advantage."
    )


@dataclass
class IdleWarning:
    """Warns once, after the first ``IDLE_STEPS`` steps, if none of them had an advantage; call it with each record."""

    warn: Callable[[str], None]
    _idle: list[Mapping[str, Any]] | None = None

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Take in a step's metrics."""
        if record["step"] == 1:
            self._idle = []
        if self._idle is None:  # an advantage was seen, or the run's beginning was not
            return
        self._idle.append(record)
        sentence = nothing_learnt(self._idle)
        if sentence is None:
            self._idle = None
        elif len(self._idle) == IDLE_STEPS:
            self.warn(f"warning: {sentence} See samples.jsonl; an easier task or more completions a prompt may help.")
            self._idle = None
