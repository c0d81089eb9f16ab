"""Made-up studies and records."""

import json
from pathlib import Path
from typing import Any

from covgrpo.studies import Study, read_study
from covgrpo.studies.records import Record, record_path

STUDY = """
about: A made-up comparison.
options: {task: addition, threads: 1, steps: 20}
regimes: {easy: {}, hard: {num_iterations: 4}}
methods: {grpo: {}, gaussian: {}, clip_cov: {seeds: 2}}
seeds: [3, 4, 5]
evaluation: {problems: 4, every: 10, samples: 16, samples_between: 2, temperatures: [0.6, 1.0]}
outcome: accuracy@0.6
hard_regimes: [hard]
"""


def made_study(folder: Path, text: str = STUDY, name: str = "made") -> Study:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return read_study(path)


def evaluation(step: int, greedy: list[int], sampled: dict[float, tuple[int, list[int], float]]) -> dict[str, Any]:
    """One record of evaluations.jsonl from counts of right completions: temperature -> (samples, counts, entropy)."""
    counts = {0.0: (1, greedy, 0.5), **sampled}
    results = [
        {
            "temperature": temperature, "samples": n, "accuracy": sum(correct) / n / len(correct), "entropy": entropy,
            "mean_length": 2.0, "unscored": 0, "correct": correct,
        }
        for temperature, (n, correct, entropy) in counts.items()
    ]  # fmt: skip
    return {"step": step, "n": len(greedy), "results": results}


def with_other(entry: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """An evaluation with another as that on the second task."""
    return {**entry, "other": {name: other[name] for name in ("n", "results")}}


def made_record(regime: str, method: str, seed: int, final: float, **changes: Any) -> Record:
    """A record whose last accuracy at 0.6 and 1 is ``final`` (a fraction of 16 samples of 4 problems)."""
    right = round(final * 64)
    correct = [right // 4 + (i < right % 4) for i in range(4)]
    values = {
        "options": {},
        "environment": {},
        "curves": {"reward": [final] * 20, "entropy": [0.5] * 20, "grad_norm": [1.0] * 20},
        "evaluations": [
            evaluation(0, [0, 0, 0, 0], {0.6: (2, [0, 0, 0, 1], 2.0), 1.0: (2, [0, 0, 0, 0], 2.0)}),
            evaluation(20, [1, 0, 0, 0], {0.6: (16, correct, 0.4), 1.0: (16, correct, 0.4)}),
        ],
    }
    return Record(regime, method, seed, **{**values, **changes})


def write_records(folder: Path, study: Study, finals: dict[tuple[str, str, int], float], **changes: Any) -> None:
    """Records of the study's runs, by (regime, method, seed) -> final accuracy, with the runs' own options."""
    from covgrpo.studies.records import _changed

    for spec in study.runs:
        key = (spec.regime, spec.method, spec.seed)
        if key in finals:
            record = made_record(*key, finals[key], options=_changed(spec.options), **changes)
            path = record_path(folder, spec)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"version": 1, "study": study.name, **vars(record)}))
