"""Evaluation: accuracy with honest intervals."""

from covgrpo.evaluation.evaluate import Accuracy, EvalSettings, Evaluation, evaluate

__all__ = ["Accuracy", "EvalSettings", "Evaluation", "evaluate"]
