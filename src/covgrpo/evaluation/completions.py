"""Completions that were made elsewhere: a JSON-lines file of {"id", "completion"}, several lines an id for avg@k."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from covgrpo.errors import UserError
from covgrpo.files import json_objects, parse_exactly, read_json_lines
from covgrpo.suggest import did_you_mean_or_known


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
        lines = list(read_json_lines(path, parse_exactly))
    except OSError as error:
        raise UserError(f"cannot read {path}: {(error.strerror or str(error)).lower()}.") from error
    found: dict[str, list[str]] = {}
    for where, row in json_objects(path, lines):
        key, completion = _fields(row, where)
        if key not in known:
            raise UserError(f"{where}: no problem has the id {key!r}.{did_you_mean_or_known(key, known)}")
        found.setdefault(key, []).append(completion)
    if not found:
        raise UserError(f"{path}: the file holds no completion.")
    return found


def _fields(row: dict[str, Any], where: str) -> tuple[str, str]:
    for name in ("id", "completion"):
        if name not in row:
            raise UserError(f"{where}: field {name!r} is missing.")
        if not isinstance(row[name], str) and not (name == "id" and type(row[name]) is int):
            raise UserError(f"{where}: field {name!r} must be text, not {json.dumps(row[name])[:80]}.")
    return str(row["id"]), row["completion"]
