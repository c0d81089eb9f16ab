"""Whether a record of a run holds what one holds: it may come from elsewhere, and what reads it computes with it."""

from collections.abc import Mapping
from typing import Any

from covgrpo.files import is_number


def what_is_wrong(record: Mapping[str, Any]) -> str | None:
    """Say what is wrong with a record that has all its fields; ``None`` where it is whole."""
    for name, kind in (("regime", str), ("method", str), ("options", dict), ("environment", dict)):
        if not isinstance(record[name], kind):
            return f"{name} is not {'text' if kind is str else 'an object'}"
    if not _is_whole(record["seed"]):
        return "seed is no whole number"
    return _of_curves(record["curves"]) or _of_evaluations(record["evaluations"])


def _of_curves(curves: Any) -> str | None:
    if not isinstance(curves, dict) or not all(isinstance(values, list) for values in curves.values()):
        return "curves is no object of lists"
    for name, values in curves.items():
        if not all(value is None or is_number(value) for value in values):
            return f"curve {name!r} holds what is neither a number nor null"
    if len({len(values) for values in curves.values()}) > 1:
        return "its curves differ in length"
    return None


def _of_evaluations(evaluations: Any) -> str | None:
    if not isinstance(evaluations, list):
        return "evaluations is no list"
    for place, entry in enumerate(evaluations):
        if not isinstance(entry, dict) or not _is_whole(entry.get("step")):
            return f"evaluation {place} has no step"
        parts = [entry, *([entry["other"]] if "other" in entry else [])]
        for part in parts:
            if not isinstance(part, dict) or not isinstance(part.get("results"), list):
                return f"evaluation {place} has no list of results"
            if wrong := next((text for result in part["results"] if (text := _of_result(result))), None):
                return f"evaluation {place}: {wrong}"
    return None


def _of_result(result: Any) -> str | None:
    if not isinstance(result, dict):
        return "a result is no object"
    samples: Any = result.get("samples")
    samples = samples if _is_whole(samples) and samples >= 1 else 0
    entropy, rates = result.get("entropy"), result.get("pass", {})
    whole = {
        "temperature is no number": is_number(result.get("temperature")),
        "accuracy is no number": is_number(result.get("accuracy")),
        "entropy is neither a number nor null": entropy is None or is_number(entropy),
        "samples is no whole number above 0": samples,
        "correct is no list of counts": _are_counts(result.get("correct", [0]), samples),
        "majority_correct is no list of zeros and ones": _are_counts(result.get("majority_correct", [0]), 1),
        "pass is no object of numbers": isinstance(rates, dict) and all(map(is_number, rates.values())),
    }
    return next((text for text, holds in whole.items() if not holds), None)


def _are_counts(values: Any, most: int) -> bool:
    return isinstance(values, list) and bool(values) and all(_is_whole(n) and 0 <= n <= most for n in values)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and is_number(value)
