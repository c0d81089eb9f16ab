"""Where the time of a step goes; nothing of what is computed changes."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Phases:
    """Adds up ``seconds`` by phase: sampling, scoring (log-probs without gradient), reward, preparing (all of these and
    what lies between them).
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the time inside the block."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - started

    def scoring(self, score: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call TRL's scoring, timed where it is a pass of its own: the update's belongs to the update."""
        if torch.is_grad_enabled():
            return score(*args, **kwargs)
        with self.timed("scoring"):
            return score(*args, **kwargs)
