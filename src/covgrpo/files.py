"""JSON lines that may be torn, and files that are written whole or not at all. Standard library only."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from covgrpo.errors import UserError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class JsonLine(NamedTuple):
    """A line of a JSON-lines file; what a damaged one means is for its reader to say.

    Args:
        number: from 1.
        raw: its bytes without the newline.
        value: what it holds.
        error: why it holds nothing: no UTF-8, no JSON, or nested too deep.
        ended: whether it has its newline. One without may be torn: a process was killed while it wrote.

    """

    number: int
    raw: bytes
    value: Any = None
    error: ValueError | RecursionError | None = None
    ended: bool = True


def read_json_lines(path: Path) -> Iterator[JsonLine]:
    """The lines of a UTF-8 file as they are read, blank ones too; a byte order mark at its start is left out.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            raw, ended = line.removesuffix(b"\n"), line.endswith(b"\n")
            if number == 1:
                raw = raw.removeprefix(_BYTE_ORDER_MARK)
            try:
                value = json.loads(raw.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                yield JsonLine(number, raw, error=error, ended=ended)
            else:
                yield JsonLine(number, raw, value, ended=ended)


def json_objects(path: Path, lines: Iterable[JsonLine]) -> Iterator[tuple[str, dict[str, Any]]]:
    """``(where, object)`` of each line that is not blank, of a file that a user wrote.

    Raises:
        UserError: a line is no JSON object; names the file and the line.
    """
    for line in lines:
        if not line.raw.strip():
            continue
        where = f"{path}, line {line.number}"
        if line.error is not None:
            raise UserError(f"{where}: not valid JSON ({line.error}).") from line.error
        if not isinstance(line.value, dict):
            raise UserError(f"{where}: a JSON object is expected, not {type(line.value).__name__}.")
        yield where, line.value


@contextmanager
def replacing(target: Path, beside: Path | None = None) -> Iterator[IO[str]]:
    """A file that takes the place of ``target`` when the block ends well, and is removed when it does not.

    Args:
        target: is whole at any time: as it was, or new.
        beside: where the file lies until then, on the same file system; default: next to ``target``.

    Raises:
        OSError: it cannot be written.
    """
    beside = beside or target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with beside.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what keeps ``path`` from being written in the block into one sentence.

    Raises:
        UserError: names the file and why.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path} ({(error.strerror or str(error)).lower()}).") from error


def write_text(path: Path, text: str) -> None:
    """Write a file, with its folder.

    Raises:
        UserError: it cannot be written; names the file and why.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
