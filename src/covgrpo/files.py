"""JSON lines that may be torn, and files that are written whole or not at all. Standard library only."""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

from covgrpo.errors import UserError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# UTF-8 has no half of a character (a lone surrogate, from a JSON escape or a file's odd name): written as JSON does.
_HALVES = "backslashreplace"
MOST = 1e100  # in size, of a number of a file that is computed with: it can be drawn, squared and added up


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


class AmbiguousError(ValueError):
    """Python reads the text as JSON, and as something else than it looks."""


def parse_exactly(text: str) -> Any:
    """Parse JSON of a user's own.

    Raises:
        AmbiguousError: a key twice in one object, a number that is none or beyond a float's range, or half a character.
        ValueError: it is no JSON.
    """
    value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_finite)
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            code = ord(error.object[error.start])
            raise AmbiguousError(f"\\u{code:04x} is half of a character (a lone surrogate)") from error
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise AmbiguousError(f"field {twice!r} is given twice")
    return found


def _no_number(name: str) -> NoReturn:
    raise AmbiguousError(f"{name} is no number; write text in quotes")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise AmbiguousError(f"{text} is beyond the range of a float; write text in quotes")
    return value


def is_number(value: Any) -> bool:
    """Whether a value of a file can be computed with: no truth value, no NaN, and at most ``MOST`` in size."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MOST


def load_json(path: Path) -> Any:
    """Read a UTF-8 file of JSON.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no JSON, no UTF-8, or nested deeper than Python reads.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def read_json_lines(path: Path, parse: Callable[[str], Any] = json.loads) -> Iterator[JsonLine]:
    """The lines of a UTF-8 file as they are read, blank ones too; a byte order mark at its start is left out.

    ``parse`` reads one; for files of a user's own :func:`parse_exactly`.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            raw, ended = line.removesuffix(b"\n"), line.endswith(b"\n")
            if number == 1:
                raw = raw.removeprefix(_BYTE_ORDER_MARK)
            try:
                value = parse(raw.decode("utf-8"))
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
        if isinstance(line.error, AmbiguousError):
            raise UserError(f"{where}: {line.error}.") from line.error
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
        with beside.open("w", encoding="utf-8", errors=_HALVES) as file:
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


def user_path(text: str | Path) -> Path:
    """The path that a user names; ``~`` and ``~name`` are homes where there is one, else names, as in a shell."""
    return Path(os.path.expanduser(text))


def write_text(path: Path, text: str) -> None:
    """Write a file, with its folder.

    Raises:
        UserError: it cannot be written; names the file and why.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors=_HALVES)
