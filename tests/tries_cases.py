"""An independent reference for traces of tries: every try there is, found by trying everything, and random texts."""

import random
from collections.abc import Iterator
from fractions import Fraction
from functools import cache

SIGNS = "+-*/"


def all_tries(terms: tuple[int, ...], made: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
    """Steps of right arithmetic, at least one, and the terms that they leave."""
    if made:
        yield made, terms
    for i, a in enumerate(terms):
        for j, b in enumerate(terms):
            rest = tuple(term for k, term in enumerate(terms) if k not in (i, j))
            for sign in SIGNS if i != j else "":
                value = exact(a, sign, b)
                if value is not None:
                    yield from all_tries((*rest, value), (*made, f"{a}{sign}{b}={value}"))


def exact(a: int, sign: str, b: int) -> int | None:
    if sign == "/" and b == 0:
        return None
    x, y = Fraction(a), Fraction(b)
    value = {"+": x + y, "-": x - y, "*": x * y, "/": x / y if y else x}[sign]
    return int(value) if value >= 0 and value.denominator == 1 else None


@cache
def judged_tries(numbers: tuple[int, ...], target: int) -> dict[str, bool]:
    """Every try with its right judgement -> whether it hits."""
    return {
        " ".join(steps) + ("!" if left == (target,) else " x;"): left == (target,) for steps, left in all_tries(numbers)
    }


@cache
def beginnings(numbers: tuple[int, ...], target: int) -> frozenset[str]:
    return frozenset(text[:n] for text in judged_tries(numbers, target) for n in range(len(text) + 1))


def is_right(numbers: tuple[int, ...], target: int, text: str) -> bool:
    """What the verifier should say of a text without white space around it."""
    last = text.rpartition(";")[2]
    return text.count("!") == 1 and judged_tries(numbers, target).get(last, False)


def first_wrong(numbers: tuple[int, ...], target: int, text: str, ended: bool) -> int | None:
    """Position of the first character behind which no text without a mistake goes on; the end's is ``len(text)``."""
    tries, good = judged_tries(numbers, target), beginnings(numbers, target)
    written, done = "", False
    for position, character in enumerate(text):
        written += character
        if done or written not in good:
            return position
        if written in tries:
            done, written = tries[written], ""
    return None if done or not ended else len(text)


def mutated(text: str, rng: random.Random) -> str:
    """One to three characters put in, taken out, replaced or exchanged with the next, or the end cut off."""
    for _ in range(rng.randint(1, 3)):
        i = rng.randrange(len(text) + 1)
        character = rng.choice("0123456789+-*/= x;!")
        text = rng.choice(
            [
                text[:i] + character + text[i:],
                text[:i] + text[i + 1 :],
                text[:i] + character + text[i + 1 :],
                text[:i] + text[i + 1 : i + 2] + text[i : i + 1] + text[i + 2 :],
                text[:i],
            ]
        )
    return text
