"""Command lines of small runs, and what bad ones are answered with."""

import pytest

from covgrpo.cli import main

SMALL = ["--steps", "1", "--prompts-per-step", "2", "--num-generations", "4", "--max-completion-length", "4"]


def command(*arguments: str, task: str = "addition", model: str = "../tiny") -> list[str]:
    return ["train", "--task", task, "--model", model, "--output", "out", *SMALL, *arguments]


def refused(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """Exit code 2 and one line on stderr; returns it without the program's name."""
    code = main(argv)
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("covgrpo: ")
    assert error.endswith("\n")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    return error.removeprefix("covgrpo: ").rstrip("\n")
