"""What verifiers may use of the machine."""

import os

GIB = 1 << 30
DEFAULT_MEMORY_GIB = 2.0
_MOST_WORKERS = 8


def usable_cores() -> int:
    """Cores that this process may run on, of those that the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """One a core, at most 8; the processes that a launcher starts on one machine share its cores."""
    processes = max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or 1))
    return max(1, min(_MOST_WORKERS, usable_cores() // processes))
