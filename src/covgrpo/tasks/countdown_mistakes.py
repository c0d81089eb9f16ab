"""Where a trace of tries goes wrong: the steps and judgements that are mistaken, and the character that makes them so.

A trace tells exactly which of its characters is the mistake, so a study can count what a method does to it. Grammar and
verifier: :mod:`covgrpo.tasks.countdown_tries`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from covgrpo.tasks.countdown_tries import MAX_LENGTH, read_step, result

Kind = Literal["form", "number", "result", "judgement"]

_TRY = re.compile(r"[^;!]*[;!]?")
# as much of a step as there is
_PARTS = re.compile(r"([0-9]*)([-+*/]?)([0-9]*)(=?)([0-9]*)")


@dataclass(frozen=True)
class Mistake:
    """A step or judgement that is mistaken; positions count characters of the text.

    Attributes:
        kind: ``form``: the grammar is left; ``number``: a step uses a number that is not there; ``result``: a step has
            not the right result, or none exists; ``judgement``: ``!`` after a try that misses, or anything but ``!``
            after one that hits.
        start: First character of the step or judgement.
        end: One past its last.
        first: The first character with which the text can no longer go on rightly. It is ``end`` where a number stops
            too early (``5`` for ``51``): then what stands behind it is the mistake.
    """

    kind: Kind
    start: int
    end: int
    first: int


def find_mistakes(numbers: Sequence[int], target: int, text: str, ended: bool = False) -> list[Mistake]:
    """The mistakes of a completion, in their order; a text that scores 1 has none in its last try.

    A step is judged by what the text says so far: after a wrong result the steps behind it may use that result. Only
    the first mistake of a step counts. A try with a mistaken step misses. Behind a step that cannot be read, and behind
    a hit that is not followed by ``!``, the rest of the try is left out.

    Args:
        numbers: the given numbers.
        target: what they should make.
        text: a completion without special tokens, not stripped, of at most 1,000 characters.
        ended: whether an end-of-sequence token stands behind the text. Without it the text was cut off, and its
            beginning of a step is no mistake as long as it could have gone on rightly. With it, an end without ``!`` is
            a mistake of form at position ``len(text)``, the token's.

    Raises:
        ValueError: the text is longer.
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(f"text has {len(text)} characters; at most {MAX_LENGTH} are read.")
    found: list[Mistake] = []
    start = 0
    for written in filter(None, _TRY.findall(text)):
        end = start + len(written)
        found += _of_try(list(numbers), target, written, start, is_open=end == len(text) and not ended)
        start = end
        if written.endswith("!"):
            break
    if start < len(text):
        found.append(Mistake("form", start, len(text), start))
    elif ended and not text.endswith("!") and not (found and found[-1].first == len(text)):
        found.append(Mistake("form", len(text), len(text) + 1, len(text)))
    return found


def mistaken_characters(length: int, mistakes: Iterable[Mistake], whole: bool = False) -> list[bool]:
    """For each of ``length`` positions whether it is a mistake.

    Args:
        length: of the text, one more to count the end-of-sequence token.
        mistakes: of :func:`find_mistakes`.
        whole: mark every character of a mistaken step or judgement, instead of the first wrong one.
    """
    marked = [False] * length
    for mistake in mistakes:
        for position in range(mistake.start, mistake.end) if whole else [mistake.first]:
            if position < length:
                marked[position] = True
    return marked


def _of_try(terms: list[int], target: int, written: str, start: int, is_open: bool) -> list[Mistake]:
    """The mistakes of one try, its judgement included, of which the first character stands at ``start``."""
    end = start + len(written)
    closing = written[-1] if written[-1] in ";!" else ""
    words = written.removesuffix(closing).split(" ") if closing else written.split(" ")
    found: list[Mistake] = []
    position = start
    for i, word in enumerate(words):
        is_last = i == len(words) - 1
        if not found and terms == [target]:
            return [Mistake("judgement", position - 1, end, position - 1)]
        if word == "x" and i > 0 and is_last and closing != "!":
            return found
        wrong = _first_wrong(terms, word, is_open=is_open and is_last and not closing, may_judge=i > 0)
        if wrong:
            kind, offset = wrong
            found.append(Mistake(kind, position, position + max(1, len(word)), position + offset))
        step = read_step(word)
        if step is None:
            break
        for term in (step.a, step.b):
            if term in terms:
                terms.remove(term)
        terms.append(step.value)
        position += len(word) + 1
    if closing == "!" and (found or terms != [target]):
        found.append(Mistake("judgement", end - 1, end, end - 1))
    elif closing == ";" and step is not None:
        found.append(Mistake("form", end - 1, end, end - 1))
    return found


def _first_wrong(terms: list[int], word: str, is_open: bool, may_judge: bool) -> tuple[Kind, int] | None:
    """Kind and offset of the first wrong character of a step, ``len(word)`` for the one behind it; None: no mistake.

    Args:
        terms: the numbers that are there.
        word: the step as written.
        is_open: whether the text was cut off behind it.
        may_judge: whether ``x`` could stand here.
    """
    parts = _PARTS.match(word)
    assert parts is not None  # noqa: S101 (every part may be empty)
    cut = len(word) if is_open else -1
    if not parts[1]:
        return None if not word and is_open else ("form", int(may_judge and word.startswith("x")))
    # a step needs two terms
    if (offset := _departs(parts, 1, terms if len(terms) > 1 else [], cut)) is not None:
        return "number", offset
    if not parts[2]:
        return None if parts.end(1) == cut else ("form", parts.end(1))
    rest = list(terms)
    rest.remove(int(parts[1]))
    return _wrong_from_sign_on(rest, parts, cut)


def _wrong_from_sign_on(rest: list[int], parts: re.Match[str], cut: int) -> tuple[Kind, int] | None:
    """As :func:`_first_wrong`; ``rest``: the terms beside the step's first, ``cut``: where the text was cut off."""
    results = {term: result(int(parts[1]), parts[2], term) for term in rest}
    fitting = [term for term, value in results.items() if value is not None]
    if not fitting:
        return "result", parts.start(2)
    if (offset := _departs(parts, 3, fitting, cut)) is not None:
        kind: Kind = "result" if _departs(parts, 3, rest, cut) is None else "number"
        return kind if parts[3] else "form", offset
    if not parts[4]:
        return None if parts.end(3) == cut else ("form", parts.end(3))
    right = results[int(parts[3])]
    if (offset := _departs(parts, 5, [] if right is None else [right], cut)) is not None:
        return "result" if parts[5] else "form", offset
    return None if parts.end() == len(parts.string) else ("form", parts.end())


def _departs(parts: re.Match[str], group: int, options: Iterable[int], cut: int) -> int | None:
    """Offset at which a number as written departs from all options, its end where it stops too early; None: nowhere."""
    written, texts = parts[group], [str(option) for option in options]
    may_go_on = parts.end(group) == cut
    if any(text.startswith(written) if may_go_on else text == written for text in texts):
        return None
    return parts.start(group) + max((_num_shared(written, text) for text in texts), default=0)


def _num_shared(left: str, right: str) -> int:
    """How many characters two texts have in common from their beginning on."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))
