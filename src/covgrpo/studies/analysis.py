"""What a study's records add up to: each outcome of each method in each regime, and its difference to the baseline."""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from covgrpo.studies.outcomes import OUTCOMES, STEPS_TO_BEST, OutcomeInfo, steps_to, threshold
from covgrpo.studies.records import Record
from covgrpo.studies.spec import Study
from covgrpo.studies.statistics import Interval, holm, interval, sign_flip_p

ALL_OUTCOMES: dict[str, OutcomeInfo] = {**OUTCOMES, "steps_to_best": STEPS_TO_BEST}
EVERYWHERE = "all regimes"
BY_SEED = "all regimes, by seed"


@dataclass(frozen=True)
class Cell:
    """A method in a regime, by one outcome.

    Args:
        regime: its name, or ``EVERYWHERE`` or ``BY_SEED``.
        method: its name in the study.
        outcome: key of ``ALL_OUTCOMES``.
        values: seed -> value.
        own: mean, median and interval of the values.
        difference: of value minus the baseline's value of the same seed, over the seeds that both have; ``None`` for
            the baseline itself and without a pair.
        p: two-sided, of the paired permutation test; ``None`` likewise.
        p_corrected: by Holm over all comparisons of the study by this outcome; ``None`` for ``BY_SEED``.

    """

    regime: str
    method: str
    outcome: str
    values: dict[int, float]
    own: Interval
    difference: Interval | None
    p: float | None = None
    p_corrected: float | None = None


def analyse(study: Study, records: Mapping[str, Record], outcome: str) -> list[Cell]:
    """One cell for each regime and method that has a finished run, then, with several regimes, two rows over all.

    In ``EVERYWHERE`` the pairs of all regimes count alike, each with its own regime's baseline. Those of one seed share
    problems and so are not quite independent; in ``BY_SEED`` a seed has one difference, its mean over the regimes.
    """
    return _cells(study, outcome_values(records, outcome), outcome, study.regimes)


def _cells(
    study: Study, values: Mapping[tuple[str, str], dict[int, float]], outcome: str, regimes: Sequence[str]
) -> list[Cell]:
    found: list[tuple[Cell, list[float]]] = []
    regimes = [regime for regime in regimes if any(key[0] == regime for key in values)]
    for regime in regimes:
        for method in study.methods:
            mine = values.get((regime, method))
            if mine:
                differences = _differences(mine, values.get((regime, study.baseline), {}))
                found.append(_cell(regime, method, outcome, mine, differences, method == study.baseline))
    if len(regimes) > 1:
        found += _everywhere(study, values, outcome, regimes)
    p_values = {f"{cell.regime}|{cell.method}": sign_flip_p(d) for cell, d in found if cell.difference is not None}
    # The row over all regimes repeats the others' pairs: it is one more question, so it is counted too. By seed the
    # same question is asked again.
    corrected = holm({key: p for key, p in p_values.items() if not key.startswith(f"{BY_SEED}|")})
    return [_with_p(cell, p_values, corrected) for cell, _ in found]


def _with_p(cell: Cell, p_values: Mapping[str, float], corrected: Mapping[str, float]) -> Cell:
    key = f"{cell.regime}|{cell.method}"
    return dataclasses.replace(cell, p=p_values.get(key), p_corrected=corrected.get(key))


def outcome_values(records: Mapping[str, Record], outcome: str) -> dict[tuple[str, str], dict[int, float]]:
    """(regime, method) -> seed -> value, where the record has one."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    thresholds = _thresholds(records.values()) if outcome == "steps_to_best" else {}
    for record in records.values():
        if outcome == "steps_to_best":
            value: float | None = steps_to(record, thresholds[record.regime, record.seed])
        else:
            value = OUTCOMES[outcome].of(record)
        if value is not None:
            found.setdefault((record.regime, record.method), {})[record.seed] = value
    return found


def _thresholds(records: Iterable[Record]) -> dict[tuple[str, int], float | None]:
    pairs: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        pairs.setdefault((record.regime, record.seed), []).append(record)
    return {pair: threshold(members) for pair, members in pairs.items()}


def _differences(mine: Mapping[int, float], baseline: Mapping[int, float]) -> list[float]:
    return [mine[seed] - baseline[seed] for seed in sorted(mine) if seed in baseline]


def _cell(
    regime: str, method: str, outcome: str, values: dict[int, float], differences: list[float], is_baseline: bool
) -> tuple[Cell, list[float]]:
    compared = interval(differences) if differences and not is_baseline else None
    ordered = dict(sorted(values.items()))
    return Cell(regime, method, outcome, ordered, interval(list(ordered.values())), compared), differences


def _everywhere(
    study: Study, values: Mapping[tuple[str, str], dict[int, float]], outcome: str, regimes: Sequence[str]
) -> list[tuple[Cell, list[float]]]:
    """Methods over all regimes: all pairs alike, then a seed as one unit. A seed's value: its mean over regimes."""
    everywhere, by_seed = [], []
    for method in study.methods:
        of_seed: dict[int, list[float]] = {}
        differences: dict[int, list[float]] = {}
        pooled: list[float] = []
        for regime in regimes:
            mine, base = values.get((regime, method), {}), values.get((regime, study.baseline), {})
            pooled += _differences(mine, base)
            for seed, value in mine.items():
                of_seed.setdefault(seed, []).append(value)
                if seed in base:
                    differences.setdefault(seed, []).append(value - base[seed])
        if not of_seed:
            continue
        means = {seed: statistics.fmean(found) for seed, found in of_seed.items()}
        everywhere.append(_cell(EVERYWHERE, method, outcome, means, pooled, method == study.baseline))
        if differences and method != study.baseline:
            units = [statistics.fmean(differences[seed]) for seed in sorted(differences)]
            by_seed.append(_cell(BY_SEED, method, outcome, means, units, False))
    return everywhere + by_seed


def tuned(
    study: Study, records: Mapping[str, Record], option: str, outcome: str, by: str
) -> tuple[list[Cell], dict[tuple[str, str], list[str]]]:
    """Compare the methods each at its own best value of a swept option, chosen without the seed that is looked at.

    For each seed a method's value of ``option`` is the one with the best mean of ``by`` over the method's other seeds
    (of equals the first in the study's order), so that no run is judged by a choice that it took part in.

    Returns:
        The cells, with the option left out of the regimes' names, and (regime, method) -> the values chosen, one a
        seed.

    """
    better = ALL_OUTCOMES[by].better or 1
    judged, valued = outcome_values(records, by), outcome_values(records, outcome)
    values: dict[tuple[str, str], dict[int, float]] = {}
    chosen: dict[tuple[str, str], list[str]] = {}
    for rest, regimes in _without(study.regimes, option).items():
        for method in study.methods:
            for seed in sorted({seed for regime in regimes for seed in judged.get((regime, method), {})}):
                means = {
                    regime: better * statistics.fmean(others)
                    for regime in regimes
                    if (others := [v for s, v in judged.get((regime, method), {}).items() if s != seed])
                }
                if not means:
                    continue
                best = max(means, key=lambda regime: means[regime])
                if seed in valued.get((best, method), {}):
                    values.setdefault((rest, method), {})[seed] = valued[best, method][seed]
                    chosen.setdefault((rest, method), []).append(_part(best, option))
    return _cells(study, values, outcome, list(_without(study.regimes, option))), chosen


def _without(regimes: Sequence[str], option: str) -> dict[str, list[str]]:
    """Regimes that differ in nothing but the option, under the name that they have without it."""
    found: dict[str, list[str]] = {}
    for regime in regimes:
        parts = regime.split(", ")
        rest = [part for part in parts if not part.startswith(f"{option}=")]
        if len(rest) < len(parts):
            found.setdefault(", ".join(rest), []).append(regime)
    return found


def _part(regime: str, option: str) -> str:
    return next(part.split("=", 1)[1] for part in regime.split(", ") if part.startswith(f"{option}="))
