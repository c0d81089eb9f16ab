"""Completions that were made elsewhere: a JSON-lines file of {"id", "completion"}, several lines an id for avg@k."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from covgrpo.errors import UserError
from covgrpo.tasks.base import did_you_mean


def read_completions(path: str | Path, known: Collection[str]) -> dict[str, list[str]]:
    """The completions of each problem, in the order of the file.

    Args:
        path: UTF-8; blank lines are skipped, fields beside the two are ignored.
        known: ids of the problems.

    Raises:
        UserError: the file cannot be read, a line is no such object, an id is unknown, or there is no completion.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}.") from error
    found: dict[str, list[str]] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{path}, line {number}"
            key, completion = _fields(line, where)
            if key not in known:
                raise UserError(f"{where}: no problem has the id {key!r}.{did_you_mean(key, known)}")
            found.setdefault(key, []).append(completion)
    if not found:
        raise UserError(f"{path}: the file holds no completion.")
    return found


def _fields(line: bytes, where: str) -> tuple[str, str]:
    try:
        row: Any = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error}).") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: a JSON object is expected, not {type(row).__name__}.")
    for name in ("id", "completion"):
        if name not in row:
            raise UserError(f"{where}: field {name!r} is missing.")
        if not isinstance(row[name], str) and not (name == "id" and type(row[name]) is int):
            raise UserError(f"{where}: field {name!r} must be text, not {json.dumps(row[name])[:80]}.")
    return str(row["id"]), row["completion"]
