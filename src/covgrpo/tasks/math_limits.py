r"""What is not given to the computer algebra: text that no answer looks like and that it would chew on for ever.

One pass over the text for each rule. A refused answer is wrong, not a failure of the verifier.
"""

import re
from collections.abc import Callable

MAX_CHARACTERS = 1000
_MAX_DEPTH = 40
_MAX_FACTORIAL = 9999
_OPENING, _CLOSING = "({[", ")}]"
# an answer that leaves these to be worked out is one only where the gold answer does
_UNEVALUATED = re.compile(r"\\(?:sum|prod|i*int|oint|lim)(?![A-Za-z])")
_FACTORIAL = re.compile(r"(\d+)\s*(?=!)|!\s*!|\)\s*!")
# three exponents above a base: 2^{3^{4^5}}, 2**3**4**5
_TOWER = re.compile(r"(?:\^|\*\*)[^^*+=,;$]{0,20}(?:\^|\*\*)[^^*+=,;$]{0,20}(?:\^|\*\*)")
_EXPONENT = re.compile(r"[)\]}]\s*(?:\^|\*\*)\s*\{?\s*(\d{3,})")
_ANY_EXPONENT = re.compile(r"(?:\^|\*\*)\s*\{?\s*\d{3,}")
_BIG_EXPONENT = re.compile(r"(?:\^|\*\*)\s*\{?\s*\(?\s*(\d{6,})")


def end_of(text: str, characters: int = MAX_CHARACTERS) -> str:
    """The last characters of running text, stripped; dollar signs stay in pairs."""
    text = text.strip()
    if len(text) <= characters:
        return text
    tail = text[-characters:]
    if tail.count("$") % 2:
        tail = tail.partition("$")[2]
    return tail.strip()


def _depth(text: str) -> int:
    depth = most = 0
    for character in text:
        if character in _OPENING:
            depth += 1
            most = max(most, depth)
        elif character in _CLOSING:
            depth -= 1
    return most


def _is_big_factorial(text: str) -> bool:
    return any(not m[1] or len(m[1]) > 4 or int(m[1]) > _MAX_FACTORIAL for m in _FACTORIAL.finditer(text))


def _is_big_power(text: str) -> bool:
    return bool(_EXPONENT.search(text) or _BIG_EXPONENT.search(text))


# what is refused, found by the first function in the answer and not by the second in the gold answer
_Test = Callable[[str], object]
_RULES: tuple[tuple[str, _Test, _Test], ...] = (
    ("it leaves a sum, product, integral or limit to be worked out", _UNEVALUATED.search, _UNEVALUATED.search),
    ("it has a factorial of a large or unknown number", _is_big_factorial, _is_big_factorial),
    ("it is a tower of powers", _TOWER.search, _TOWER.search),
    ("it raises an expression to a large power", _is_big_power, _ANY_EXPONENT.search),
)


def why_refused(answer: str, gold: str) -> str | None:
    """Why an answer is wrong without being looked at as mathematics; ``None``: it may be looked at."""
    if len(answer) > MAX_CHARACTERS + len(gold):
        return f"it has {len(answer)} characters"
    if _depth(answer) > _MAX_DEPTH + _depth(gold):
        return "its brackets nest too deeply"
    return next((reason for reason, found, allowed in _RULES if found(answer) and not allowed(gold)), None)
