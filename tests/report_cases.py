"""Run folders made up for reports."""

import json
import math
import random
from pathlib import Path
from typing import Any

from covgrpo.metrics import COVARIANCE_EDGES, WEIGHT_EDGES


def metrics_of(step: int, rng: random.Random) -> dict[str, Any]:
    tail = 3 * math.exp(-step / 50) + rng.random()
    sides = {"0.0001": 4 * tail, "0.01": tail, "0.2": tail / 5, "0.4": tail / 9, "1": 0.01}
    return {
        "step": step,
        "reward": 1 - math.exp(-step / 20),
        "entropy": math.exp(-step / 30) + 0.05 * rng.random(),
        "grad_norm": 1 + rng.random(),
        "cov/mean": 0.1,
        "cov/sigma": tail / 2,
        **{f"cov/pos_{name}": value for name, value in sides.items()},
        **{f"cov/neg_{name}": -value for name, value in sides.items()},
        "cov/weighted": 0.05,
        "weight/ess": 0.8,
        "weight/min": 0.01,
        "entropy/predicted": -1e-6 * tail,
        "update/top_share": 0.1,
        "update/top_share_unweighted": 0.3,
        "step_time": 1.5,
    }


def histogram_of(step: int, rng: random.Random) -> dict[str, Any]:
    return {
        "step": step,
        "c": [rng.randint(0, 50) for _ in range(len(COVARIANCE_EDGES) + 1)],
        "weight": [rng.randint(0, 50) for _ in range(len(WEIGHT_EDGES) + 1)],
        "idle": 3,
        "c_edges": COVARIANCE_EDGES,
        "weight_edges": WEIGHT_EDGES,
    }


def token_of(step: int, place: int, rng: random.Random) -> dict[str, Any]:
    return {
        "step": step, "text": rng.choice(["7", " the", "\n", "<|im_end|>"]), "before": "What is", "token": place,
        "row": place, "position": 0, "logp": -rng.random(), "advantage": 1.0, "c": rng.gauss(0, 2),
        "weight": rng.random(), "entropy": rng.random(),
    }  # fmt: skip


def sample_of(step: int, text: list[str], rng: random.Random) -> dict[str, Any]:
    numbers = [round(rng.random() * 2, 3) for _ in text]
    return {
        "step": step, "prompt": "What is 3 + 4?", "completion": "".join(text), "rewards": {"correctness": 1.0},
        "advantage": 0.5,
        "tokens": {"text": text, "logp": numbers, "c": numbers, "weight": numbers, "entropy": numbers},
    }  # fmt: skip


def write_lines(path: Path, records: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record) + "\n")


def make_run(folder: Path, steps: int = 60, seed: int = 0, method: str = "gaussian", **options: Any) -> Path:
    """A run folder as ``covgrpo train`` leaves it."""
    folder.mkdir(parents=True)
    rng = random.Random(seed)
    every = range(1, steps + 1)
    chosen = {"method": method, "seed": seed, "steps": 60, "task": "addition", "model": "tiny", "weighting": None}
    (folder / "config.json").write_text(json.dumps({"command": "train", "options": {**chosen, **options}}))
    accuracy = {"accuracy": 0.25, "low": 0.1, "high": 0.4}
    result = {"n": 16, "greedy": accuracy, "sampled": accuracy, "entropy": 1.0}
    better = {**result, "greedy": {**accuracy, "accuracy": 1.0}}
    (folder / "eval.json").write_text(json.dumps({"before": result, "after": better}))
    write_lines(folder / "metrics.jsonl", (metrics_of(step, rng) for step in every))
    write_lines(folder / "histograms.jsonl", (histogram_of(step, rng) for step in every))
    write_lines(folder / "tokens.jsonl", (token_of(step, i, rng) for step in every for i in range(16)))
    words = ["The", " sum", " is", " 7", "<|im_end|>"]
    write_lines(folder / "samples.jsonl", (sample_of(step, words, rng) for step in every for _ in range(2)))
    return folder
