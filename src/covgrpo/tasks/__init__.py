"""Tasks: prompts with known answers, and the verifier of each. See :func:`load_task`."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from covgrpo.errors import UserError
from covgrpo.suggest import did_you_mean_or_known
from covgrpo.tasks.addition import AdditionTask
from covgrpo.tasks.base import Problem, Split, Task, TaskInfo, is_eval_question
from covgrpo.tasks.countdown import CountdownTask
from covgrpo.tasks.digits import DigitsTask
from covgrpo.tasks.hub import HubTask
from covgrpo.tasks.jsonl import JsonlTask
from covgrpo.tasks.prompt import ANSWER_FORMATS, AnswerFormat, PromptFormat, get_answer_format
from covgrpo.tasks.reasoning_gym import ReasoningGymTask
from covgrpo.tasks.spec import parse_spec

__all__ = [
    "ANSWER_FORMATS",
    "TASK_KINDS",
    "AnswerFormat",
    "Problem",
    "PromptFormat",
    "Split",
    "Task",
    "TaskInfo",
    "get_answer_format",
    "is_eval_question",
    "list_tasks",
    "load_task",
]

TASK_KINDS: dict[str, Callable[[str, dict[str, Any]], Task]] = {
    "addition": AdditionTask.from_spec,
    "countdown": CountdownTask.from_spec,
    "digits": DigitsTask.from_spec,
    "hub": HubTask.from_spec,
    "jsonl": JsonlTask.from_spec,
    "reasoning_gym": ReasoningGymTask.from_spec,
}


def load_task(spec: str, params: dict[str, Any] | None = None) -> Task:
    """The task of a spec such as ``reasoning_gym:basic_arithmetic?min_terms=2&operators=["+"]``.

    ``params`` override those of the spec. A user's own task is named by its import path with a dot before the
    colon, ``my_pkg.tasks:make_task?level=3``; it is called as ``make_task(**params)`` and returns a :class:`Task`.

    Raises:
        UserError: unknown kind, task or parameter; a refused value; an import path that does not import or does
            not give a task.
    """
    kind, body, spec_params = parse_spec(spec)
    merged = spec_params | (params or {})
    if kind in TASK_KINDS:
        return TASK_KINDS[kind](body, merged)
    if "." in kind and body and not kind.startswith("."):
        return _load_own_task(kind, body, merged)
    raise UserError(f"Task {spec!r}: unknown kind {kind!r}.{did_you_mean_or_known(kind, TASK_KINDS)}")


def _load_own_task(module: str, name: str, params: dict[str, Any]) -> Task:
    try:
        factory = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"Task '{module}:{name}' cannot be imported: {error}.") from error
    try:
        task = factory(**params)
    except TypeError as error:
        raise UserError(f"Task '{module}:{name}' does not take {params}: {error}.") from error
    if not isinstance(task, Task):
        raise UserError(
            f"Task '{module}:{name}' gave a {type(task).__name__}, which lacks spec, verifier or problems()."
        )
    return task


def list_tasks() -> list[TaskInfo]:
    """Every built-in task with its parameters' defaults. Imports reasoning-gym (one to two seconds)."""
    own = (AdditionTask, CountdownTask, DigitsTask, JsonlTask, HubTask, ReasoningGymTask)
    return [info for task in own for info in task.info()]
