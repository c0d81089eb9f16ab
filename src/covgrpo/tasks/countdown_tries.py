"""Countdown by traces of tries: each works step by step, is judged, and is followed by the next, until one hits.

For ``3 4 5=8`` a trace is ``3+4=7 7*5=35 x;5-3=2 2*4=8!``. In its grammar

    trace = {steps " x;"} steps "!"
    steps = step {" " step}
    step  = number ("+" | "-" | "*" | "/") number "=" number

A step takes two of the terms that are there, at first the given numbers, and puts its result in their place. ``x;``
judges the try wrong, ``!`` right. Numbers are integers from 0 on, so that ``-`` and ``/`` need an exact result.
"""

import random
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from covgrpo.tasks.base import Problem
from covgrpo.tasks.countdown_steps import Step, random_solution

if TYPE_CHECKING:
    from covgrpo.tasks.countdown import CountdownTask

MAX_LENGTH = 1000  # characters; four numbers need about 160
# the product of six numbers up to 1,000 has 19 digits
_NUMBER = "(?:0|[1-9][0-9]{0,18})"
_STEP = re.compile(rf"({_NUMBER})([-+*/])({_NUMBER})=({_NUMBER})")
_MAX_DRAWS = 10_000  # of tries in the hope of a wrong one


def result(a: int, sign: str, b: int) -> int | None:
    """``a sign b`` where that is an integer from 0 on, else None."""
    if sign == "+":
        return a + b
    if sign == "*":
        return a * b
    if sign == "-":
        return a - b if a >= b else None
    return a // b if b and a % b == 0 else None


def read_step(text: str) -> Step | None:
    """The step that the whole text is, right or wrong; None where it is none."""
    found = _STEP.fullmatch(text)
    return Step(int(found[1]), found[2], int(found[3]), int(found[4])) if found else None


def is_hit(numbers: Sequence[int], target: int, steps: Sequence[str]) -> bool:
    """Whether the steps are right, use each number once, and leave the target alone."""
    terms = list(numbers)
    for text in steps:
        step = read_step(text)
        if step is None or result(step.a, step.sign, step.b) != step.value:
            return False
        for term in (step.a, step.b):
            if term not in terms:
                return False
            terms.remove(term)
        terms.append(step.value)
    return terms == [target]


def last_try(answer: str) -> str:
    """The steps of the try that a trace ends with, joined by commas, which alone :func:`score` judges.

    "" where the answer has not its only ``!`` at its end.
    """
    text, end, rest = answer.strip().partition("!")
    return text.rpartition(";")[2].replace(" ", ",") if end and not rest else ""


def score(payload: dict[str, Any], answer: str) -> float:
    """1 if the stripped answer ends with its only ``!`` and the try before it hits, else 0.

    The last try is what follows the last ``;``. Those before it are not looked at. An answer of more than 1,000
    characters scores 0 unread.
    """
    if len(answer) > MAX_LENGTH:
        return 0.0
    text, end, rest = answer.strip().partition("!")
    if not end or rest:
        return 0.0
    return float(is_hit(payload["numbers"], payload["target"], text.rpartition(";")[2].split(" ")))


def random_trace(task: "CountdownTask", problem: Problem, rng: random.Random, most_wrong: int = 3) -> str:
    """A trace of k wrong tries, k uniform in 0 .. ``most_wrong``, and the answer. All steps are right.

    Fewer than k tries are wrong where none of 10,000 draws misses the target.

    Args:
        task: of style ``tries``; it draws the tries.
        problem: one of its problems.
        rng: decides k and the tries.
        most_wrong: the largest k.
    """
    numbers, target = problem.payload["numbers"], problem.payload["target"]
    wrong: list[str] = []
    wanted = rng.randint(0, most_wrong)
    for _ in range(_MAX_DRAWS):
        if len(wrong) == wanted:
            break
        value, _answer, steps = random_solution(numbers, rng)
        if value != target and task.is_easy(steps):
            wrong.append(f"{' '.join(map(str, steps))} x;")
    return "".join(wrong) + problem.answer
