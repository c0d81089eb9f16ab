"""Values in JSON's types, and where two sets of them differ."""

import json
import math
import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any

_ABSENT = "(absent)"


def plain(value: Any) -> Any:
    """``value`` in JSON's types: NaN and infinities null, paths text, NumPy and torch scalars and arrays as numbers."""
    if hasattr(value, "tolist"):  # a NumPy or torch scalar gives a number, an array lists
        value = value.tolist()
    elif isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif isinstance(value, set | frozenset):
        value = sorted(value, key=str)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    raise TypeError(f"a run's record cannot hold a {type(value).__name__}: {value!r}")


def differences(old: Any, new: Any, ignore: Collection[str] = ()) -> list[tuple[str, Any, Any]]:
    """Where two configurations differ: ``(dotted key, old value, new value)``, in the order of ``old``, then ``new``.

    Both are compared in their JSON form, so a tuple equals a list. ``ignore`` holds dotted keys; ``"trainer"`` covers
    ``trainer.seed`` too. A key that is on one side only has the value ``"(absent)"`` on the other.
    """
    flat_old, flat_new = dict(_flat(plain(old))), dict(_flat(plain(new)))
    found = []
    for key in dict.fromkeys([*flat_old, *flat_new]):
        before, now = flat_old.get(key, _ABSENT), flat_new.get(key, _ABSENT)
        # 1, 1.0 and True are equal in Python; only the last is another setting.
        same = before == now and isinstance(before, bool) == isinstance(now, bool)
        if not same and not any(key == i or key.startswith(f"{i}.") for i in ignore):
            found.append((key, before, now))
    return found


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What is not a mapping, by its dotted key; an empty mapping is as one that is not there."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value


def shown(value: Any) -> str:
    """A value of :func:`differences` as a sentence shows it."""
    text = value if value is _ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
