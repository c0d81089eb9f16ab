"""Keeps a user's reward function from ending the run."""

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

from covgrpo.errors import UserError

logger = logging.getLogger(__name__)

RewardFunc = Callable[..., Sequence[float | None]]


class _Log:
    """Keeps what a reward function logs through TRL's ``log_extra`` and ``log_metric`` until its call has come back.

    TRL makes a table of the extra columns: each must have one value a completion.
    """

    def __init__(self, columns: dict[str, Any]):
        self.theirs = {name: columns[name] for name in ("log_extra", "log_metric") if callable(columns.get(name))}
        self.extra: dict[str, list[Any]] = {}
        self.metrics: list[tuple[str, float]] = []

    def functions(self) -> dict[str, Callable[..., None]]:
        """What the reward function gets in place of TRL's."""
        mine: dict[str, Callable[..., None]] = {"log_extra": self._log_extra, "log_metric": self._log_metric}
        return {name: mine[name] for name in self.theirs}

    def _log_extra(self, column: str, values: Sequence[Any]) -> None:
        self.extra.setdefault(column, []).extend(values)

    def _log_metric(self, name: str, value: float) -> None:
        self.metrics.append((name, value))

    def take(self, row: int, num_rows: int, other: "_Log") -> None:
        """Take over what a call on the completion ``row`` alone has logged; other rows have ``None`` until they do."""
        for column, values in other.extra.items():
            self.extra.setdefault(column, [None] * num_rows)[row] = values[0] if values else None
        self.metrics += other.metrics

    def hand_on(self) -> None:
        """Log it."""
        for column, values in self.extra.items():
            self.theirs["log_extra"](column, values)
        for name, value in self.metrics:
            self.theirs["log_metric"](name, value)


class GuardedReward:
    """``reward_func``, except that an exception on one completion costs that completion its reward.

    The whole batch is tried first. If that raises, or gives a wrong number of rewards, the function is called on each
    completion alone, with the lists among its arguments that are as long as the batch cut down to that one; where it
    raises again the reward is 0. A :class:`covgrpo.errors.UserError` (such as a verifier that cannot start) passes
    through: no completion is to blame for it.

    Attributes:
        failures: Completions that lost their reward so far. The first is logged.

    Raises:
        UserError: ``reward_func`` is asynchronous.
    """

    def __init__(self, reward_func: RewardFunc):
        if inspect.iscoroutinefunction(reward_func):
            raise UserError(f"Reward function {_name(reward_func)!r} is asynchronous, which guarded() does not take.")
        self.reward_func = reward_func
        self.__name__ = _name(reward_func)
        self.failures = 0

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Rewards in the order of ``completions``.

        Raises:
            UserError: raised by the reward function itself.
        """
        log = _Log(columns)
        try:
            rewards = self._call(prompts, completions, {**columns, **log.functions()})
        except UserError:
            raise
        except Exception:
            log = _Log(columns)
            rewards = [self._one(i, prompts, completions, columns, log) for i in range(len(completions))]
        log.hand_on()
        return rewards

    def _call(self, prompts: Sequence[Any], completions: Sequence[Any], columns: dict[str, Any]) -> list[float | None]:
        rewards = list(self.reward_func(prompts=prompts, completions=completions, **columns))
        if len(rewards) != len(completions):
            raise ValueError(f"{len(rewards)} rewards for {len(completions)} completions")
        return rewards

    def _one(
        self, i: int, prompts: Sequence[Any], completions: Sequence[Any], columns: dict[str, Any], log: "_Log"
    ) -> float | None:
        num = len(completions)
        alone = {
            name: value[i : i + 1] if isinstance(value, list) and len(value) == num else value
            for name, value in columns.items()
        }
        mine = _Log(columns)
        try:
            reward = self._call(prompts[i : i + 1], completions[i : i + 1], {**alone, **mine.functions()})[0]
        except UserError:
            raise
        except Exception as error:
            if not self.failures:
                logger.warning(
                    "Reward function %s failed on a completion, which gets 0: %s: %s. Further failures are counted, "
                    "not shown.",
                    self.__name__,
                    type(error).__name__,
                    error,
                )
            self.failures += 1
            return 0.0
        log.take(i, num, mine)
        return reward


def _name(reward_func: Callable[..., Any]) -> str:
    return getattr(reward_func, "__name__", type(reward_func).__name__)


def guarded(reward_func: RewardFunc) -> GuardedReward:
    """Wrap ``reward_func`` in a :class:`GuardedReward`.

    Raises:
        UserError: ``reward_func`` is asynchronous.
    """
    return GuardedReward(reward_func)
