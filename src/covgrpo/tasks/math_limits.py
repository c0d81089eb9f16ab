r"""What is not given to the computer algebra: text that no answer looks like and that it would chew on for ever.

One pass over the text for each rule. A refused answer is wrong, not a failure of the verifier.
"""

import re
from collections.abc import Callable, Iterator

MAX_CHARACTERS = 1000
_MAX_DEPTH = 40
_MAX_FACTORIAL = 9999
_OPENING, _CLOSING = "({[", ")}]"
_DOLLAR = re.compile(r"(?<!\\)\$")
_ANCHOR = re.compile(r"answer(?:\s+is\b|\s*[:=])", re.IGNORECASE)
_DELIMITED = re.compile(
    r"(?<!\\)\$\$?(?:[^$\\]|\\.)+\$\$?|\\\((?:[^\\]|\\[^)])+\\\)|\\\[(?:[^\\]|\\[^\]])+\\\]", re.DOTALL
)
# an answer that leaves these to be worked out is one only where the gold answer does
_UNEVALUATED = re.compile(r"\\(?:sum|prod|i*int|oint|lim)(?![A-Za-z])")
_FACTORIAL = re.compile(r"(\d+)\s*(?=!)|!\s*!|\)\s*!")
# a caret, a bracket, a number, a command, any other character
_TOKEN = re.compile(r"\^|\*\*|\d[\d.]*|\\[A-Za-z]+|\S")
_MAX_POWERS = 2  # in one another
_MAX_EQUATIONS = 10  # in a row
_EXPONENT = re.compile(r"[)\]}]\s*(?:\^|\*\*)\s*\{?\s*(\d{3,})")
_ANY_EXPONENT = re.compile(r"(?:\^|\*\*)\s*\{?\s*\d{3,}")
_BIG_EXPONENT = re.compile(r"(?:\^|\*\*)\s*\{?\s*\(?\s*(\d{6,})")


def end_of(text: str, characters: int = MAX_CHARACTERS) -> str:
    """The last characters of running text, stripped; dollar signs stay in pairs."""
    text = text.strip()
    if len(text) <= characters:
        return text
    tail = text[-characters:]
    marks = list(_DOLLAR.finditer(tail))
    return (tail[marks[0].end() :] if len(marks) % 2 else tail).strip()


def parts_to_read(text: str) -> Iterator[str]:
    """What may be meant by the end of running text: all of it, or only the answer in it.

    The working before an answer may hold what is refused. The answer is what follows the last "answer is", without an
    exclamation mark at the end; where nothing says so, the last expression between dollar signs or the like.
    """
    yield text
    if anchors := list(_ANCHOR.finditer(text)):
        said = text[anchors[-1].start() :]
        yield said
        yield said.rstrip("!. ")
    elif expressions := list(_DELIMITED.finditer(text)):
        yield expressions[-1][0]


def _depth(text: str) -> int:
    depth = most = 0
    for character in text:
        if character in _OPENING:
            depth += 1
            most = max(most, depth)
        elif character in _CLOSING:
            depth -= 1
    return most


class _Group:
    """What stands between two brackets: powers in powers at most, and what a caret would apply to."""

    def __init__(self) -> None:
        self.most = self.last = self.base = 0
        self.exponent_follows = self.of_command = False

    def caret(self) -> None:
        self.base, self.exponent_follows, self.of_command = self.last, True, False

    def item(self, powers: int, group: bool = False) -> None:
        """Take in a number, a letter or a ``group`` with that many powers in powers."""
        if self.exponent_follows or (group and self.of_command):  # ^\frac{a}{b} has two groups, ^\sqrt[a]{b} as well
            powers = 1 + max(self.base, powers)
        self.last, self.most, self.exponent_follows = powers, max(self.most, powers), False
        self.of_command = self.of_command and group


def _powers_in_powers(text: str) -> int:
    """How many powers stand in one another's base or exponent at most: 3 in 2^{3^{4^5}}, 2**3**4**5, ((2^3)^4)^5."""
    groups = [_Group()]
    for part in _TOKEN.findall(text):
        group = groups[-1]
        if part in ("^", "**"):
            group.caret()
        elif part in _OPENING:
            groups.append(_Group())
        elif part in _CLOSING:
            if len(groups) > 1:
                groups.pop()
                groups[-1].item(group.most, group=True)
        elif group.exponent_follows and (part in ("+", "-") or part[0] == "\\"):
            group.of_command = part[0] == "\\"
        else:
            group.item(0)
    return max(group.most for group in groups)


def _is_tower(text: str) -> bool:
    return _powers_in_powers(text) > _MAX_POWERS


def _is_chain(text: str) -> bool:
    return text.count("=") > _MAX_EQUATIONS


def _is_big_factorial(text: str) -> bool:
    return any(not m[1] or len(m[1]) > 4 or int(m[1]) > _MAX_FACTORIAL for m in _FACTORIAL.finditer(text))


def _is_big_power(text: str) -> bool:
    return bool(_EXPONENT.search(text) or _BIG_EXPONENT.search(text))


# what is refused, found by the first function in the answer and not by the second in the gold answer
_Test = Callable[[str], object]
_RULES: tuple[tuple[str, _Test, _Test], ...] = (
    ("it leaves a sum, product, integral or limit to be worked out", _UNEVALUATED.search, _UNEVALUATED.search),
    ("it has a factorial of a large or unknown number", _is_big_factorial, _is_big_factorial),
    ("it is a chain of equations", _is_chain, _is_chain),
    ("it is a tower of powers", _is_tower, _is_tower),
    ("it raises an expression to a large power", _is_big_power, _ANY_EXPONENT.search),
)


def why_refused(answer: str, gold: str) -> str | None:
    """Why an answer is wrong without being looked at as mathematics; ``None``: it may be looked at."""
    if len(answer) > MAX_CHARACTERS + len(gold):
        return f"it has {len(answer)} characters"
    if _depth(answer) > _MAX_DEPTH + _depth(gold):
        return "its brackets nest too deeply"
    return next((reason for reason, found, allowed in _RULES if found(answer) and not allowed(gold)), None)
