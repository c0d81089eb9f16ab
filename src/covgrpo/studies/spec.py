"""What a study is: its runs, the baseline, the outcome it asks for. Every method sees the same problems and seeds."""

import dataclasses
import re
from dataclasses import dataclass

from covgrpo.errors import UserError
from covgrpo.runs.options import TrainOptions


@dataclass(frozen=True)
class RunSpec:
    """One run of a study.

    Args:
        regime: what all methods share: task, model, regime and swept options, as ``name=value`` texts, in order.
        method: the method's name in the study.
        seed: of the run; runs of a regime with one seed are a pair.
        options: of ``covgrpo train``.

    """

    regime: str
    method: str
    seed: int
    options: TrainOptions

    @property
    def id(self) -> str:
        """Name of the run's record, unique in its study and safe as a file's name."""
        parts = [*([self.regime_id] if self.regime else []), _slug(self.method), f"s{self.seed}"]
        return "--".join(parts)

    @property
    def regime_id(self) -> str:
        """The regime, safe as a file's name."""
        return _slug(self.regime)


@dataclass(frozen=True)
class Study:
    """A study.

    Args:
        name: the file's name without its ending.
        about: a sentence on what it asks.
        runs: all of them, seed by seed, so that a study stopped early holds whole pairs.
        baseline: the method that the others are compared to.
        outcome: the primary outcome (see :mod:`covgrpo.studies.outcomes`).
        hard_regimes: regimes named beforehand as hard on the baseline.
        margin: differences of the primary outcome within it are negligible, in the outcome's unit.
        secondary: outcomes that have a table of their own beside the primary one.

    """

    name: str
    about: str
    runs: list[RunSpec]
    baseline: str
    outcome: str
    hard_regimes: list[str]
    margin: float | None = None
    secondary: list[str] = dataclasses.field(default_factory=list)

    @property
    def regimes(self) -> list[str]:
        """The regimes, in order."""
        return list(dict.fromkeys(run.regime for run in self.runs))

    @property
    def methods(self) -> list[str]:
        """The methods, in order."""
        return list(dict.fromkeys(run.method for run in self.runs))

    def shard(self, index: int, count: int) -> list[RunSpec]:
        """The runs of part ``index`` of ``count``, counted from 1; a pair stays together.

        Raises:
            UserError: no such part.
        """
        if not 1 <= index <= count:
            raise UserError(f"shard {index}/{count}: the part must be between 1 and {count}.")
        pairs = list(dict.fromkeys((run.seed, run.regime) for run in self.runs))
        mine = set(pairs[index - 1 :: count])
        return [run for run in self.runs if (run.seed, run.regime) in mine]


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=+]+", "-", text).strip("-")
