"""Countdown's solutions as steps: each joins two of the terms that are there, until one is left."""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """``a sign b = value``: one operation of a solution."""

    a: int
    sign: str
    b: int
    value: int

    def __str__(self) -> str:
        return f"{self.a}{self.sign}{self.b}={self.value}"


def random_solution(given: list[int], rng: random.Random) -> tuple[int, str, list[Step]]:
    """Join two random terms by a random operation that gives a positive integer, until one term is left.

    Returns:
        Value; text of the expression, without spaces, every operation but the outermost in parentheses; the operations
        in the order in which they were chosen.
    """
    terms, steps = [(number, str(number)) for number in given], []
    while len(terms) > 1:
        (a, left), (b, right) = (terms.pop(rng.randrange(len(terms))) for _ in range(2))
        results = [("+", a + b), ("*", a * b)]
        if a > b:
            results.append(("-", a - b))
        if a % b == 0:
            results.append(("/", a // b))
        sign, value = rng.choice(results)
        steps.append(Step(a, sign, b, value))
        terms.append((value, f"({left}{sign}{right})" if terms else f"{left}{sign}{right}"))
    return *terms[0], steps
