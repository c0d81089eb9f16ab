"""Verifiers in worker processes: hostile text costs one item its score, never the run."""

from covgrpo.verify.machine import DEFAULT_MEMORY_GIB, default_workers, usable_cores
from covgrpo.verify.pool import MAX_ANSWER_CHARS, Failure, Verdict, VerifierPool

__all__ = [
    "DEFAULT_MEMORY_GIB",
    "MAX_ANSWER_CHARS",
    "Failure",
    "Verdict",
    "VerifierPool",
    "default_workers",
    "usable_cores",
]
