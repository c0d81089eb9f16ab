"""Files that a command writes where the user says."""

from pathlib import Path

from covgrpo.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Write a file, with its folder.

    Raises:
        UserError: it cannot be written; names the file and why.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path} ({(error.strerror or str(error)).lower()}).") from error
