"""What a run's token records say: histograms over training, the most damped tokens, completions token by token."""

from collections import defaultdict
from operator import ne
from typing import Any

from covgrpo.files import MOST
from covgrpo.report.reading import RunRecords
from covgrpo.report.series import number

_HISTOGRAMS = 200  # positions of the slider
_TOKENS = 40
_SAMPLES, _SAMPLES_PER_STEP = 60, 3
_NUMBERS = ("logp", "advantage", "c", "weight", "entropy")


def histogram_frames(run: RunRecords) -> dict[str, Any] | None:
    """Counts of c and of the weights by step; neighbouring steps are added up where there are many.

    Returns:
        ``c_edges``, ``weight_edges``, and ``frames``: ``first`` and ``last`` step, ``c``, ``weight`` counts, ``idle``.
        ``None`` where the run has none.

    """
    steps = len(run.metrics)
    size = max(1, -(-steps // _HISTOGRAMS))
    frames: list[dict[str, Any]] = []
    edges: dict[str, Any] = {}
    merged = 0
    for record in run.records("histograms.jsonl"):
        if not _is_histogram(record):
            continue
        bins = {name: record[name] for name in ("c_edges", "weight_edges")}
        if edges and bins != edges:
            continue
        edges = bins
        if merged % size == 0:
            frames.append({"first": record["step"], "c": [0] * len(record["c"]), "idle": 0})
            frames[-1]["weight"] = [0] * len(record["weight"])
        merged += 1
        frame = frames[-1]
        frame["last"] = record["step"]
        frame["idle"] += number(record.get("idle")) or 0
        for name in ("c", "weight"):
            frame[name] = [a + b for a, b in zip(frame[name], record[name], strict=True)]
    return {**edges, "frames": frames} if frames else None


def _is_histogram(record: dict[str, Any]) -> bool:
    return all(
        _are_numbers(record.get(name))
        and _are_numbers(record.get(f"{name}_edges"))
        and len(record[name]) == len(record[f"{name}_edges"]) + 1
        for name in ("c", "weight")
    )


def _are_numbers(values: Any) -> bool:
    """Whether it is a list of numbers that can be drawn; of ten million of them in seconds."""
    if not isinstance(values, list) or not set(map(type, values)) <= {int, float}:
        return False
    return not values or (min(values) >= -MOST and max(values) <= MOST and not any(map(ne, values, values)))  # NaN


def damped_tokens(run: RunRecords) -> list[dict[str, Any]]:
    """The tokens that were among a step's most damped, by text, the most frequent first.

    Returns:
        For each: ``text``, ``count``, ``steps`` (in how many), means of log-prob, advantage, c and weight, and the
        ``example`` with the smallest weight (largest |c| among equals), with what stood ``before`` it.

    """
    found: dict[str, dict[str, Any]] = {}
    for record in run.records("tokens.jsonl"):
        text = record.get("text")
        values = {name: number(record.get(name)) for name in _NUMBERS}
        if not isinstance(text, str) or any(value is None for value in values.values()):
            continue
        entry = found.setdefault(text, {"count": 0, "steps": set(), "sums": defaultdict(float), "example": None})
        entry["count"] += 1
        entry["steps"].add(record["step"])
        for name, value in values.items():
            entry["sums"][name] += value
        example = {"before": str(record.get("before", "")), "step": record["step"], **values}
        if entry["example"] is None or _tamed(example) < _tamed(entry["example"]):
            entry["example"] = example
    ordered = sorted(found.items(), key=lambda item: (-item[1]["count"], item[0]))[:_TOKENS]
    return [
        {
            "text": text,
            "count": entry["count"],
            "steps": len(entry["steps"]),
            **{name: entry["sums"][name] / entry["count"] for name in _NUMBERS},
            "example": entry["example"],
        }
        for text, entry in ordered
    ]


def _tamed(example: dict[str, Any]) -> tuple[float, float]:
    return example["weight"], -abs(example["c"])


def completions(run: RunRecords) -> list[dict[str, Any]]:
    """Completions with their tokens, spread over training: of each step those with the largest |advantage|."""
    steps = sorted({record["step"] for record in run.metrics})
    size = max(1, len(steps) * _SAMPLES_PER_STEP // _SAMPLES)
    by_step: dict[int, list[dict[str, Any]]] = {step: [] for step in [*steps[::size], *steps[-1:]]}
    for record in run.records("samples.jsonl"):
        if record["step"] in by_step:
            by_step[record["step"]].append(_completion(record))
    return [
        completion
        for step in sorted(by_step)
        for completion in sorted(by_step[step], key=lambda c: -abs(c["advantage"] or 0.0))[:_SAMPLES_PER_STEP]
    ]


def _completion(record: dict[str, Any]) -> dict[str, Any]:
    rewards = record.get("rewards")
    return {
        "step": record["step"],
        "prompt": str(record.get("prompt", "")),
        "completion": str(record.get("completion", "")),
        "advantage": number(record.get("advantage")),
        "rewards": {str(name): number(value) for name, value in rewards.items()} if isinstance(rewards, dict) else {},
        "tokens": _token_columns(record.get("tokens")),
    }


def _token_columns(tokens: Any) -> dict[str, list[Any]] | None:
    names = ("text", "logp", "c", "weight", "entropy")
    if not isinstance(tokens, dict) or not all(isinstance(tokens.get(name), list) for name in names):
        return None
    length = len(tokens["text"])
    usable = set(map(type, tokens["text"])) <= {str}
    usable &= all(len(tokens[name]) == length for name in names) and all(_are_numbers(tokens[n]) for n in names[1:])
    return {name: tokens[name] for name in names} if usable else None
