"""Names and folders for the tests of the models."""

from pathlib import Path

from covgrpo.models import builtin

NAME = "smollm2-135m"


WHEEL = builtin.BUILTIN_MODELS[NAME].wheel


def fill(folder: Path, *files: str) -> str:
    folder.mkdir(exist_ok=True)
    for file in files:
        (folder / file).write_text("{}")
    return str(folder)
