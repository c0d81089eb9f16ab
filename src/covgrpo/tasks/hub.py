"""Problems from a data set on the Hugging Face hub, verified with math-verify."""

import math
from collections.abc import Iterable
from typing import Any

from covgrpo.errors import UserError
from covgrpo.packages import require
from covgrpo.tasks.base import (
    DEFAULT_EVAL_FRACTION,
    Problem,
    Split,
    TaskInfo,
    draw_problems,
    merge_parameters,
)
from covgrpo.tasks.prompt import last_boxed
from covgrpo.tasks.spec import format_spec

_DEFAULTS = {
    "config": "", "data_split": "train", "question": "problem", "answer": "answer", "split": "hash",
    "eval_fraction": DEFAULT_EVAL_FRACTION,
}  # fmt: skip


class HubTask:
    r"""``hub:ORG/NAME``: a data set with a column of questions and one of gold answers.

    Args:
        dataset: hub id.
        config: of the data set, where it has several.
        data_split: the data set's own split that is read.
        question: column.
        answer: column; of a list its first entry counts, of a worked solution its last ``\boxed``, or what stands on
            its last line after ``####`` (as in GSM8K).
        split: ``hash``: train and eval by the question's hash, as in every task; ``all``: every problem in both.
        eval_fraction: of the questions, with ``hash``.

    Raises:
        UserError: an unknown parameter or value. Nothing is read before the first :meth:`problems`.
        MissingPackageError: there is no math-verify, or no datasets.
    """

    verifier = "covgrpo.tasks.jsonl:score"

    def __init__(self, dataset: str, **params: Any):
        self.params = merge_parameters(f"hub:{dataset}", params, _DEFAULTS)
        if self.params["split"] not in ("hash", "all"):
            raise UserError(f"Task 'hub:{dataset}': split must be 'hash' or 'all', not {self.params['split']!r}.")
        require(f"Task 'hub:{dataset}'", "math_verify", "datasets")
        self.dataset = dataset
        self.spec = format_spec("hub", dataset, self.params, _DEFAULTS)
        self._problems: list[Problem] | None = None

    @classmethod
    def from_spec(cls, body: str, params: dict[str, Any]) -> "HubTask":
        """The task of ``hub:ORG/NAME?...``. Raises as the class does."""
        if not body:
            raise UserError("Task 'hub:' needs a data set, as in hub:knoveleng/open-rs.")
        return cls(body, **merge_parameters(f"hub:{body}", params, _DEFAULTS))

    @staticmethod
    def info() -> list[TaskInfo]:
        """The entry of the task list."""
        return [TaskInfo("hub:ORG/NAME", "A data set on the hub with questions and answers, by math-verify", _DEFAULTS)]

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        """See :meth:`covgrpo.tasks.Task.problems`; reads the data set on first use.

        Raises:
            UserError: the data set cannot be loaded, or a row has no question or answer.
        """
        if self._problems is None:
            rows = hub_rows(self.dataset, self.params["config"], self.params["data_split"])
            columns = self.params["question"], self.params["answer"]
            self._problems = problems_in(rows, self.dataset.rpartition("/")[2], *columns)
        how = {"spec": self.spec, "kind": "hub", "how": self.params["split"]}
        return draw_problems(self._problems, split, n, seed, eval_fraction=self.params["eval_fraction"], **how)


def hub_rows(dataset: str, config: str, split: str) -> Iterable[dict[str, Any]]:
    """The rows of a data set.

    Raises:
        UserError: it cannot be loaded.
    """
    from datasets import load_dataset

    try:
        return load_dataset(dataset, config or None, split=split)
    except Exception as error:  # the hub's client raises a dozen kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"data set {dataset} (split {split}) cannot be loaded: {reason}; a JSON-lines file of "
            '{"problem", "answer"} serves as well.'
        ) from error


def problems_in(rows: Iterable[dict[str, Any]], name: str, question: str, answer: str) -> list[Problem]:
    """The problems in rows, with ids ``NAME/ROW``.

    Raises:
        UserError: a row without question or answer.
    """
    problems = []
    for index, row in enumerate(rows):
        text, gold = row.get(question), _gold(row.get(answer))
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"data set {name}, row {index}: column {question!r} holds no question.")
        if not gold:
            raise UserError(f"data set {name}, row {index}: column {answer!r} holds no answer.")
        problems.append(Problem(f"{name}/{index}", text.strip(), gold, {"gold": gold}))
    if not problems:
        raise UserError(f"data set {name} holds no problem.")
    return problems


def _gold(value: Any) -> str:
    if isinstance(value, list):
        value = value[0] if value else None
    if value is None or isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    text = str(value).strip()
    return last_boxed(text) or _marked(text) or text


def _marked(text: str) -> str:
    """What follows ``####`` at the start of the last line; "" where nothing does."""
    mark, _, gold = text.rpartition("\n")[2].partition(" ")
    return gold.strip() if mark == "####" else ""
