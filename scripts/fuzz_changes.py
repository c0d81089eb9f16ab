"""What scripts/fuzz.py does to text and to data that work: odd texts, odd values, and where they are put."""

import math
import random
from typing import Any

ODD_TEXTS = (
    *("null", "NaN", "-Infinity", "1e999", "-1", "0", "9" * 400, "true", '""', "[]", "{}", "\x00", "\ufeff", "\u202e"),
    *("\U0001f600", "\r", "\n", "\t", "&a *a", "!!python/object/apply:os.system [id]", "../../x", "/dev/null", "%s"),
    *("{" * 200, "[" * 5_000, '"' * 3, "?", "&", "=", ":", "- ", "</script>", "'", "\\u0000", "1_000", "0x10", "~"),
    *("x" * 300, "x" * 5_000, "~nobody-here/x", "\x1b[2J", "\\ud800", "é", "1" * 5_000, "2147483648", "-9" * 20, "*"),
    *(
        "&a [&b [*a], *a]",
        "2024-01-01",
        "!!binary aGk=",
        "!!set {a}",
        "? [1]\n: 2",
        "!!float x",
        "0b1",
        "12:30:45",
        "<<: *a",
        "1e-320",
        "\u0661",
        "--",
        "-",
        "--json",
        "{a: 1, a: 2}",
        "%2F%00",
        "tiny/..",
    ),
)
ODD_VALUES = (
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        2,
        10**9,
        2**31,
        2**63,
        10**19,
        10**400,
        -(10**400),
        0.5,
        -0.5,
        1e308,
        -1e308,
        1e-320,
    ),
    *(math.nan, math.inf, -math.inf, "", "1", "nan", "x", "x" * 5_000, "\ud800", "\0", "a\nb", "../../x", "</script>"),
    *("|", [], {}, [[]], [None], {"": None}, [1, "1", None], [math.nan], {"a": {"b": [1]}}, ["\ud800"], "\x1b[2J", "é"),
)


def as_bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")


def mutated(rng: random.Random, text: bytes, most: int = 200_000) -> bytes:
    """``text`` after one to four edits: a byte changed, a part cut, repeated, replaced or added, the end cut off."""
    for _ in range(rng.randint(1, 4)):
        a, b = sorted(rng.randint(0, len(text)) for _ in range(2))
        odd = as_bytes(rng.choice(ODD_TEXTS))
        text = rng.choice(
            (
                text[:a] + bytes([rng.randrange(256)]) + text[a + 1 :],
                text[:a] + text[b:],
                text[:b] + text[a:b] * rng.choice([1, 2, 9]) + text[b:],
                text[:a] + odd + text[a:],
                text[:a] + odd + text[b:],
                text[:a],
            )
        )[:most]
    return text


def changed(rng: random.Random, value: Any) -> Any:
    """A copy of plain data with one value somewhere replaced, dropped, repeated or put under another name."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = rng.choice(list(value))
        how = rng.random()
        if how < 0.7:
            return {**value, name: changed(rng, value[name])}
        rest = {key: entry for key, entry in value.items() if key != name}
        return rest if how < 0.85 else {**rest, rng.choice(("", "x", "step", "\ud800", name + " ")): value[name]}
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        how = rng.random()
        new = [changed(rng, value[place])] if how < 0.7 else [] if how < 0.85 else [value[place]] * 3
        return [*value[:place], *new, *value[place + 1 :]]
    return near(rng, value)


def near(rng: random.Random, value: Any) -> Any:
    """A value of the same type, or an odd one."""
    if rng.random() < 0.5 or value is None:
        return rng.choice(ODD_VALUES)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        if not abs(value) < 1e200:
            return 1
        return value * rng.choice((-1, 0, 2, 3, 7, 0.5, 1e3, 10**6, 10**12)) + rng.choice((0, 0, 1, -1))
    if isinstance(value, str):
        return mutated(rng, as_bytes(value), 5_000).decode("utf-8", "replace")
    return [value] * rng.choice((0, 2)) if isinstance(value, list) else {**value, "x": value}


def changed_often(rng: random.Random, value: Any) -> Any:
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = changed(rng, value)
    return value
