"""Verifiers in worker processes: hostile text costs one item its score, never the run."""

from covgrpo.verify.pool import MAX_ANSWER_CHARS, Failure, Verdict, VerifierPool

__all__ = ["MAX_ANSWER_CHARS", "Failure", "Verdict", "VerifierPool"]
