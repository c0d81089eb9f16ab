"""Where the time of a step goes; nothing of what is computed changes."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Phases:
    """Adds up ``seconds`` by phase: sampling, scoring (log-probs without gradient), reward, preparing (all of these and
    what lies between them). ``wait`` is called at both ends of a phase: a GPU may still be at work when Python goes on.
    """

    def __init__(self, wait: Callable[[], None] = lambda: None) -> None:
        self.wait = wait
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the time inside the block."""
        self.wait()
        started = time.perf_counter()
        try:
            yield
        finally:
            self.wait()
            self.seconds[phase] += time.perf_counter() - started

    def scoring(self, score: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call TRL's scoring, timed where it is a pass of its own: the update's belongs to the update."""
        if torch.is_grad_enabled():
            return score(*args, **kwargs)
        with self.timed("scoring"):
            return score(*args, **kwargs)
