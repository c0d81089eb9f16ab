"""Scope ``batch``: statistics over all valid tokens of one optimizer step, over its micro-batches and all processes.

An optimizer step may use part of a generation batch, one, or several, so its micro-batches are prepared before the
first of them is trained on. The policy does not change in between: the rollouts are those that TRL would draw.
"""

from collections.abc import Callable, Sequence
from typing import Any

from covgrpo.trl.weigher import Weigher

# (TRL's count of micro-batches, a batch of the dataloader) -> the micro-batch that TRL trains on
Prepare = Callable[[int, Any], dict[str, Any]]


class StepPlan:
    """The micro-batches of the optimizer step under way."""

    def __init__(self, weigher: Weigher):
        self.weigher = weigher
        self._batches: list[Any] = []
        self._first = 0
        self._planned: list[dict[str, Any]] | None = None

    def begin(self, batches: Sequence[Any], first: int) -> None:
        """Remember the dataloader's batches of a step, and TRL's count of micro-batches at its beginning."""
        self._batches, self._first, self._planned = list(batches), first, None

    def micro_batch(self, count: int, prepare: Prepare) -> dict[str, Any]:
        """Return the micro-batch at TRL's ``count``; the first call prepares and weighs those of the whole step."""
        if self._planned is None:
            self._planned = [prepare(self._first + i, batch) for i, batch in enumerate(self._batches)]
            # A micro-batch comes again with `num_iterations` above 1; its weights stay those of its first step.
            self.weigher.weigh_together(list({id(micro): micro for micro in self._planned}.values()))
        return self._planned[count - self._first]
