"""What a run came to, as numbers: each outcome is a function of its record. Accuracies: fractions; entropies: nats.

What a record does not hold was not measured: its outcome is ``None``, never 0.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from covgrpo.evaluation.intervals import pass_at_k
from covgrpo.studies.records import PASS_K, Record

_SMOOTHING = 10  # steps: the reward's running mean
_DIVERGED = 0.5  # of the best tenth's reward
_REACHED = 0.9  # of the best reward


@dataclass(frozen=True)
class OutcomeInfo:
    """An outcome: what it is called in a table, which way is better (+1, -1, or 0: neither), how it is computed."""

    title: str
    better: int
    of: Callable[[Record], float | None]


def last_at(record: Record, temperature: float, other: bool = False) -> dict[str, Any] | None:
    """The last evaluation at a temperature (0: greedy), with ``other`` on the other task; ``None`` without one."""
    return _at(record.evaluations[-1], temperature, other) if record.evaluations else None


def accuracies(record: Record, temperature: float, other: bool = False) -> list[tuple[int, float]]:
    """(step, accuracy) of every evaluation at a temperature, with ``other`` on the other task."""
    found = [(entry["step"], _at(entry, temperature, other)) for entry in record.evaluations]
    return [(step, result["accuracy"]) for step, result in found if result is not None]


def pass_rate(result: Mapping[str, Any], k: int) -> float | None:
    """Pass@k, a fraction: mean over problems of the unbiased estimate; ``None`` with fewer than k samples.

    ``None`` also for an evaluation between the first and the last of a record made before these kept pass@k.
    """
    n = result["samples"]
    if n < k:
        return None
    if "correct" in result:
        return statistics.fmean(pass_at_k(n, c, k) for c in result["correct"])
    kept: float | None = result.get("pass", {}).get(str(k))
    return kept


def pass_rates(record: Record, temperature: float, k: int) -> list[tuple[int, float]]:
    """(step, pass@k) of every evaluation at a temperature that kept it."""
    results = [(entry["step"], _at(entry, temperature)) for entry in record.evaluations]
    rates = [(step, pass_rate(result, k)) for step, result in results if result is not None]
    return [(step, rate) for step, rate in rates if rate is not None]


def running_mean(values: Sequence[float | None], width: int = _SMOOTHING) -> list[float]:
    """Mean of each ``width`` neighbouring values that are numbers, from the first whole window on."""
    numbers = [value for value in values if value is not None]
    width = max(1, min(width, len(numbers)))
    return [statistics.fmean(numbers[i : i + width]) for i in range(len(numbers) - width + 1)]


def largest_drop(values: Sequence[float]) -> float | None:
    """How far the values fall below an earlier one at most: max over s <= t of v_s - v_t; a fall takes two values."""
    if len(values) < 2:
        return None
    peak, drop = -math.inf, 0.0
    for value in values:
        peak = max(peak, value)
        drop = max(drop, peak - value)
    return drop


def diverged(record: Record) -> bool | None:
    """A step without a finite gradient, or a mean reward over the last tenth below half of the best tenth's."""
    if any(value is None for value in record.curves.get("grad_norm", ())):
        return True
    rewards = record.curves.get("reward")
    if not rewards:
        return None
    if any(value is None for value in rewards):
        return True
    tenths = running_mean(rewards, max(1, len(rewards) // 10))
    return tenths[-1] < _DIVERGED * max(tenths)


def steps_to(record: Record, reward: float | None) -> float | None:
    """First step at which the reward's running mean over 10 steps reaches ``reward``; the run's length if never."""
    rewards = record.curves.get("reward")
    if reward is None or not rewards:
        return None
    means, steps = running_mean(rewards), len(rewards)
    return next((float(steps - len(means) + place + 1) for place, mean in enumerate(means) if mean >= reward), steps)


def threshold(records: Sequence[Record]) -> float | None:
    """0.9 of the best running mean of the reward that any of these runs, a pair of one seed, reached."""
    best = [mean for record in records for mean in running_mean(record.curves.get("reward", ()))]
    return _REACHED * max(best) if best else None


def _at(entry: Mapping[str, Any], temperature: float, other: bool = False) -> dict[str, Any] | None:
    results = (entry.get("other", {}) if other else entry).get("results", ())
    return next((result for result in results if result["temperature"] == temperature), None)


def _final(temperature: float, other: bool = False) -> Callable[[Record], float | None]:
    def of(record: Record) -> float | None:
        result = last_at(record, temperature, other)
        return None if result is None else float(result["accuracy"])

    return of


def _best(temperature: float) -> Callable[[Record], float | None]:
    return lambda record: max((accuracy for _, accuracy in accuracies(record, temperature)), default=None)


def _late(temperature: float) -> Callable[[Record], float | None]:
    """Mean over the evaluations after half of the steps: less noise than one evaluation has."""

    def of(record: Record) -> float | None:
        half = len(next(iter(record.curves.values()), ())) / 2
        late = [accuracy for step, accuracy in accuracies(record, temperature) if step > half]
        return statistics.fmean(late) if late else None

    return of


def _drop(temperature: float, other: bool = False) -> Callable[[Record], float | None]:
    return lambda record: largest_drop([accuracy for _, accuracy in accuracies(record, temperature, other)])


def _pass(temperature: float, k: int, other: bool = False) -> Callable[[Record], float | None]:
    def of(record: Record) -> float | None:
        result = last_at(record, temperature, other)
        return None if result is None else pass_rate(result, k)

    return of


def _pass_drop(temperature: float, k: int) -> Callable[[Record], float | None]:
    """Needs pass@k of every evaluation: ``samples_between`` of at least k."""

    def of(record: Record) -> float | None:
        known = [rate for _, rate in pass_rates(record, temperature, k)]
        return largest_drop(known) if len(known) == len(record.evaluations) else None

    return of


def _majority(temperature: float, k: int) -> Callable[[Record], float | None]:
    """maj@k at the end: share of problems whose most frequent answer among the k samples is right.

    A vote is over all samples of a problem, so there must be k of them. What is compared: see ``vote`` of the task.
    """

    def of(record: Record) -> float | None:
        result = last_at(record, temperature)
        if result is None or result["samples"] != k or "majority_correct" not in result:
            return None
        return statistics.fmean(result["majority_correct"])

    return of


def _pass_growth(temperature: float, k: int) -> Callable[[Record], float | None]:
    def of(record: Record) -> float | None:
        many, one = _pass(temperature, k)(record), _pass(temperature, 1)(record)
        return None if many is None or one is None else many - one

    return of


def _entropy(record: Record) -> float | None:
    """Mean over the last tenth of the steps."""
    values = [value for value in record.curves.get("entropy", ()) if value is not None]
    return statistics.fmean(values[-max(1, len(values) // 10) :]) if values else None


def _held_out_entropy(record: Record) -> float | None:
    result = last_at(record, 1.0)
    return None if result is None else result.get("entropy")


def _entropy_retained(record: Record) -> float | None:
    first, last = _at(record.evaluations[0], 1.0) if record.evaluations else None, _held_out_entropy(record)
    return None if first is None or last is None or not first["entropy"] else last / first["entropy"]


def _reward_area(record: Record) -> float | None:
    values = [value for value in record.curves.get("reward", ()) if value is not None]
    return statistics.fmean(values) if values else None


def _reward_drop(record: Record) -> float | None:
    return largest_drop(running_mean(record.curves.get("reward", ())))


def _gradient(record: Record) -> float | None:
    return max((value for value in record.curves.get("grad_norm", ()) if value is not None), default=None)


def _diverged(record: Record) -> float | None:
    found = diverged(record)
    return None if found is None else float(found)


OUTCOMES: dict[str, OutcomeInfo] = {
    "accuracy@0": OutcomeInfo("accuracy at the end, greedy", +1, _final(0.0)),
    "accuracy@0.6": OutcomeInfo("accuracy at the end, temperature 0.6", +1, _final(0.6)),
    "accuracy@1": OutcomeInfo("accuracy at the end, temperature 1", +1, _final(1.0)),
    **{
        f"late@{t:g}": OutcomeInfo(f"accuracy, mean over the second half of the steps, {name}", +1, _late(t))
        for t, name in ((0.0, "greedy"), (0.6, "temperature 0.6"), (1.0, "temperature 1"))
    },
    "best@0": OutcomeInfo("best accuracy, greedy", +1, _best(0.0)),
    "best@0.6": OutcomeInfo("best accuracy, temperature 0.6", +1, _best(0.6)),
    "best@1": OutcomeInfo("best accuracy, temperature 1", +1, _best(1.0)),
    **{
        f"pass{k}@{t:g}": OutcomeInfo(f"pass@{k}, temperature {t:g}", +1, _pass(t, k))
        for t in (0.6, 1.0)
        for k in PASS_K
    },
    "growth@1": OutcomeInfo("pass@16 - pass@1, temperature 1", 0, _pass_growth(1.0, 16)),
    "growth@0.6": OutcomeInfo("pass@16 - pass@1, temperature 0.6", 0, _pass_growth(0.6, 16)),
    "maj16@0.6": OutcomeInfo("maj@16, temperature 0.6", +1, _majority(0.6, 16)),
    "maj16@1": OutcomeInfo("maj@16, temperature 1", +1, _majority(1.0, 16)),
    "area": OutcomeInfo("mean training reward over all steps", +1, _reward_area),
    "entropy": OutcomeInfo("entropy of the last tenth of the steps, nats", 0, _entropy),
    "entropy_held_out": OutcomeInfo("entropy on held-out problems at the end, nats", 0, _held_out_entropy),
    "entropy_retained": OutcomeInfo("the same as a fraction of the start's", 0, _entropy_retained),
    "drop@0.6": OutcomeInfo("largest drop of accuracy, temperature 0.6", -1, _drop(0.6)),
    "drop@0": OutcomeInfo("largest drop of accuracy, greedy", -1, _drop(0.0)),
    "drop_pass16@1": OutcomeInfo("largest drop of pass@16, temperature 1", -1, _pass_drop(1.0, 16)),
    "drop_pass8@1": OutcomeInfo("largest drop of pass@8, temperature 1", -1, _pass_drop(1.0, 8)),
    "harder_accuracy@0.6": OutcomeInfo("harder problems: accuracy at the end, temperature 0.6", +1, _final(0.6, True)),
    "harder_pass16@1": OutcomeInfo("harder problems: pass@16, temperature 1", +1, _pass(1.0, 16, True)),
    "harder_drop@0.6": OutcomeInfo("harder problems: largest drop of accuracy, temperature 0.6", -1, _drop(0.6, True)),
    "reward_drop": OutcomeInfo("largest drop of the training reward (means of 10 steps)", -1, _reward_drop),
    "grad_norm": OutcomeInfo("largest gradient norm", -1, _gradient),
    "diverged": OutcomeInfo("share of runs that diverge", -1, _diverged),
}
# Needs the other runs of its pair: see analysis.
STEPS_TO_BEST = OutcomeInfo("steps to 0.9 of the pair's best reward", -1, lambda record: None)
