"""What tasks share whose problems are generated from parameters and nothing else."""

from collections.abc import Iterator
from typing import Any, ClassVar, Self

from covgrpo.errors import UserError
from covgrpo.tasks.base import Problem, Split, collect_problems, merge_parameters
from covgrpo.tasks.spec import format_spec


class GeneratedTask:
    """Base of a frozen dataclass whose fields are the task's parameters.

    A task has ``kind`` (its name in specs), ``defaults`` (parameter -> value), ``draws``, and a function ``score`` in
    its module.
    """

    kind: ClassVar[str]
    defaults: ClassVar[dict[str, Any]]
    max_streak: ClassVar[int | None] = None
    eval_fraction: float

    @classmethod
    def from_spec(cls, body: str, params: dict[str, Any]) -> Self:
        """The task of ``kind:?name=value``.

        Raises:
            UserError: something stands between the colon and ``?``, or a parameter is unknown or wrong.
        """
        if body:
            example = next(iter(cls.defaults.items()))
            raise UserError(
                f"Task '{cls.kind}:' takes only parameters, as in {cls.kind}?{example[0]}={example[1]}, not {body!r}."
            )
        return cls(**merge_parameters(f"{cls.kind}:", params, cls.defaults))

    @property
    def body(self) -> str:
        """What stands between the colon and the parameters."""
        return ""

    @property
    def spec(self) -> str:
        """Canonical spec."""
        return format_spec(self.kind, self.body, {name: getattr(self, name) for name in self.defaults}, self.defaults)

    @property
    def verifier(self) -> str:
        """Import path of the module's ``score``."""
        return f"{type(self).__module__}:score"

    def draws(self, n: int, seed: int) -> Iterator[Problem]:
        """Enough problems of both splits, in an order that ``seed`` decides, to find ``n`` of one; it must end."""
        raise NotImplementedError

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        """See :meth:`covgrpo.tasks.Task.problems`."""
        draws, fraction = self.draws(n, seed), self.eval_fraction
        return collect_problems(draws, split, n, spec=self.spec, eval_fraction=fraction, max_streak=self.max_streak)
