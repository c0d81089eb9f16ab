"""Problems from a JSON-lines file ``{"problem", "answer", "id"?}``, its fields by other names too; by math-verify."""

import functools
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from covgrpo.errors import UserError
from covgrpo.files import json_objects, parse_exactly, read_json_lines
from covgrpo.packages import require
from covgrpo.tasks.base import (
    DEFAULT_EVAL_FRACTION,
    Problem,
    Split,
    TaskInfo,
    check_parameter_names,
    draw_problems,
    merge_parameters,
)
from covgrpo.tasks.math_limits import end_of, parts_to_read, why_refused
from covgrpo.tasks.spec import format_spec

_DEFAULTS = {"question": "problem", "answer": "answer", "split": "hash", "eval_fraction": DEFAULT_EVAL_FRACTION}


class JsonlTask:
    """``jsonl:PATH``: one problem a line, UTF-8, blank lines skipped; of equal questions the first one stands.

    Args:
        path: of the file.
        question: field of the question.
        answer: field of the gold answer.
        split: ``hash``: by the question's hash, as in every task; ``all``: every problem is in both splits, for
            benchmark files that are only evaluated on. Train on another file then.
        eval_fraction: of the questions, with ``hash``.

    Raises:
        UserError: one sentence with the file, line and field: missing file, broken JSON, a line that is no object,
            a missing or empty field, a wrong type, an id given twice, an empty file, an unknown parameter.
        MissingPackageError: there is no math-verify.
    """

    verifier = "covgrpo.tasks.jsonl:score"

    def __init__(self, path: str, **params: Any):
        self.params = merge_parameters(f"jsonl:{path}", params, _DEFAULTS)
        if self.params["split"] not in ("hash", "all"):
            raise UserError(f"Task 'jsonl:{path}': split must be 'hash' or 'all', not {self.params['split']!r}.")
        fields = self.params["question"], self.params["answer"]
        for name, field in zip(("question", "answer"), fields, strict=True):
            if not field:
                raise UserError(f"Task 'jsonl:{path}': {name} must name a field, not ''.")
        require(f"Task 'jsonl:{path}'", "math_verify")
        self.spec = format_spec("jsonl", path, self.params, _DEFAULTS)
        self._problems = read_problems(path, *fields)

    @classmethod
    def from_spec(cls, body: str, params: dict[str, Any]) -> "JsonlTask":
        """The task of ``jsonl:PATH?...``. Raises as the class does."""
        if not body:
            raise UserError("Task 'jsonl:' needs a path, as in jsonl:data/problems.jsonl.")
        check_parameter_names(f"jsonl:{body}", params, _DEFAULTS)
        return cls(body, **params)

    @staticmethod
    def info() -> list[TaskInfo]:
        """The entry of the task list."""
        return [
            TaskInfo(
                "jsonl:PATH",
                "A file of {problem, answer} lines (or fields that you name), by math-verify",
                dict(_DEFAULTS),
            )
        ]

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        """See :meth:`covgrpo.tasks.Task.problems`; with ``split="all"`` both splits are the whole file."""
        how = {"spec": self.spec, "kind": "jsonl", "how": self.params["split"]}
        return draw_problems(self._problems, split, n, seed, eval_fraction=self.params["eval_fraction"], **how)


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, object) of each line that is not blank."""
    try:
        lines = list(read_json_lines(path, parse_exactly))
    except OSError as error:
        raise UserError(f"Cannot read {str(path)!r}: {error.strerror or error}.") from error
    return json_objects(path, lines)


def _text(row: dict[str, Any], name: str, where: str) -> str:
    """A field as stripped text; numbers are taken too."""
    if name not in row:
        raise UserError(f"{where}: field {name!r} is missing; the line has {', '.join(row)[:80] or 'none'}.")
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{where}: field {name!r} must be text or a number, not {json.dumps(value)[:80]}.")
    text = str(value).strip()
    if not text:
        raise UserError(f"{where}: field {name!r} is empty.")
    return text


def read_problems(path: str | Path, question: str = "problem", answer: str = "answer") -> list[Problem]:
    """The problems of a JSON-lines file, in its order; the id defaults to ``STEM/LINE``.

    Args:
        path: UTF-8; blank lines are skipped, other fields ignored.
        question: field of the question.
        answer: field of the gold answer.

    Raises:
        UserError: see :class:`JsonlTask`.
    """
    path = Path(path)
    problems: list[Problem] = []
    places: dict[str, str] = {}
    for where, row in _objects(path):
        text, gold = _text(row, question, where), _text(row, answer, where)
        key = _text(row, "id", where) if "id" in row else f"{path.stem}/{where.rpartition(' ')[2]}"
        if key in places:
            raise UserError(f"{where}: field 'id' repeats {key!r} of {places[key]}.")
        places[key] = where
        problems.append(Problem(key, text, gold, {"gold": gold}))
    if not problems:
        raise UserError(f"{path}: the file holds no problem.")
    return problems


def warm_up() -> None:
    """Import math-verify and build its parser before the first answer's time limit runs."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own timeouts are off
    _equal(r"\frac{1}{2}", "0.5")


@functools.cache
def _guard_series() -> None:
    r"""Keep sympy from running an answer as Python.

    To evaluate an infinite series, sympy compiles its term with the names of its symbols as they are, and the name
    of ``\text{...}`` is any text. Only terms without free symbols have a value, so no other ones are compiled.
    """
    from sympy.core import evalf  # type: ignore[import-untyped]
    from sympy.core.function import AppliedUndef  # type: ignore[import-untyped]

    compile_term = evalf.lambdify

    def compile_closed_term(variable: Any, term: Any) -> Any:
        if term.free_symbols - {variable} or term.has(AppliedUndef):
            raise NotImplementedError  # sympy's own way to say that an expression has no numerical value
        return compile_term(variable, term)

    evalf.lambdify = compile_closed_term


def _parse(text: str) -> list[Any]:
    from math_verify import parse

    _guard_series()
    # its timeouts use SIGALRM, which neither threads nor long C calls obey; the worker pool's do not
    return parse(text, parsing_timeout=None)


def _boxed(text: str) -> str:
    return f"\\boxed{{{text}}}"


# running text, from which math-verify takes the last anchored expression; anything else is one expression
# (an escaped dollar is money)
_RUNNING_TEXT = re.compile(r"(?<!\\)(?:\$|\\boxed|\\[(\[])|answer\b", re.IGNORECASE)


# thin spaces between groups of digits, which math-verify reads as products
_DIGIT_GROUP = re.compile(r"(?<=\d)\\[,;:]\s*(?=\d{3}(?!\d))")


# 1.5e-7, whose e math-verify reads as Euler's number
_EXPONENT = re.compile(r"(?<![\w.\\])(\d+(?:\.\d+)?)[eE]([+-]?\d{1,3})(?![\w.])")


def _without_exponent(number: re.Match[str]) -> str:
    return f"{number[1]} \\times 10^{{{int(number[2])}}}"


def _equal(gold: str, answer: str) -> bool:
    from math_verify import verify

    gold, answer = (_EXPONENT.sub(_without_exponent, _DIGIT_GROUP.sub("", text)) for text in (gold, answer))

    answer = answer.rstrip(". ")  # math-verify does not read "42."
    # bare LaTeX needs a box to be seen; the box also keeps "41, 42" from counting as its last number
    parsed_answer = _parse(answer if _RUNNING_TEXT.search(answer) else _boxed(answer))
    return verify(_parse(_boxed(gold)), parsed_answer, timeout_seconds=None)


def score(payload: dict[str, Any], answer: str) -> float:
    """1 if ``answer`` equals the gold answer, as stripped text or else as mathematics (math-verify); else 0.

    Of running text its end counts; what :mod:`covgrpo.tasks.math_limits` refuses is wrong. Has no time limit of its
    own, and what is not refused may still run for long: call it through a VerifierPool.
    """
    gold, answer = payload["gold"].strip(), answer.strip()
    if not answer or answer == gold:
        return float(bool(answer))
    parts = parts_to_read(end_of(answer)) if _RUNNING_TEXT.search(answer) else [answer]
    part = next((part for part in parts if why_refused(part, gold) is None), None)
    return float(part is not None and _equal(gold, part))
