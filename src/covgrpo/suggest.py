"""What a mistyped name was most likely meant to be."""

from collections.abc import Iterable
from difflib import get_close_matches

from covgrpo.errors import UserError

_FEW = 12  # names that are listed where none is near


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name most like ``name``, at least ``cutoff`` of 1 alike; ``None`` where none is."""
    return next(iter(get_close_matches(name, list(known), n=1, cutoff=cutoff)), None)


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`` Did you mean 'x'?`` with the nearest name; empty where none is near."""
    near = nearest(name, known, cutoff)
    return "" if near is None else f" Did you mean {near!r}?"


def did_you_mean_or_known(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?``, or the names themselves where none is near and they are few."""
    names = sorted(known)
    listed = f" Known: {', '.join(names)}." if len(names) <= _FEW else ""
    return did_you_mean(name, names, cutoff=0.5) or listed


def check_choice(name: str, value: str, known: Iterable[str]) -> None:
    """Refuse a value that is none of ``known``.

    Raises:
        UserError: names the option, the value and the nearest known one.
    """
    known = list(known)
    if value not in known:
        near = nearest(value, known)
        hint = f"did you mean {near!r}?" if near is not None else f"known: {', '.join(known)}."
        raise UserError(f"{name} {value!r} is unknown; {hint}")
