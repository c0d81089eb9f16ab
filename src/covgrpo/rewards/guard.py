"""Keeps a user's reward function from ending the run."""

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

from covgrpo.errors import UserError

logger = logging.getLogger(__name__)

RewardFunc = Callable[..., Sequence[float | None]]


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
        try:
            return self._call(prompts, completions, columns)
        except UserError:
            raise
        except Exception:
            return [self._one(i, prompts, completions, columns) for i in range(len(completions))]

    def _call(self, prompts: Sequence[Any], completions: Sequence[Any], columns: dict[str, Any]) -> list[float | None]:
        rewards = list(self.reward_func(prompts=prompts, completions=completions, **columns))
        if len(rewards) != len(completions):
            raise ValueError(f"{len(rewards)} rewards for {len(completions)} completions")
        return rewards

    def _one(self, i: int, prompts: Sequence[Any], completions: Sequence[Any], columns: dict[str, Any]) -> float | None:
        num = len(completions)
        alone = {
            name: value[i : i + 1] if isinstance(value, list) and len(value) == num else value
            for name, value in columns.items()
        }
        try:
            return self._call(prompts[i : i + 1], completions[i : i + 1], alone)[0]
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


def _name(reward_func: Callable[..., Any]) -> str:
    return getattr(reward_func, "__name__", type(reward_func).__name__)


def guarded(reward_func: RewardFunc) -> GuardedReward:
    """Wrap ``reward_func`` in a :class:`GuardedReward`.

    Raises:
        UserError: ``reward_func`` is asynchronous.
    """
    return GuardedReward(reward_func)
