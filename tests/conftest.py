"""What several test files share: the tiny model as a folder, and tasks of a user's own."""

from pathlib import Path

import pytest
from tiny import tiny_model, tiny_tokenizer

OWN_TASKS = '''
import os
import time
from pathlib import Path

from covgrpo.tasks import Problem


class Letters:
    spec = "own.tasks:letters"

    def __init__(self, verifier, question):
        self.verifier, self.question = verifier, question

    def problems(self, split, n, seed):
        return [Problem(f"{split}/{i}", f"{self.question} {split} {i}", "e", {}) for i in range(min(n, 20))]


def letters(verifier="own.tasks:share", question="Letters?"):
    return Letters(verifier, question)


def share(payload, answer):
    """The share of letters. While the file OWN_GATE exists, waits there as soon as two steps are recorded."""
    gate = Path(os.environ.get("OWN_GATE", "/nonexistent"))
    metrics = Path(os.environ.get("OWN_METRICS", "/nonexistent"))
    while gate.exists() and metrics.exists() and metrics.read_text().count("\\n") >= 2:
        gate.with_suffix(".waiting").touch()
        time.sleep(0.02)
    return sum(character.isalpha() for character in answer) / max(1, len(answer))


def moody(payload, answer):
    """Raises on the first answer that it sees, hangs on the second, and gives every other one 1."""
    for name in ("raised", "hung"):
        try:
            Path(os.environ["OWN_FOLDER"], name).touch(exist_ok=False)
        except FileExistsError:
            continue
        if name == "raised":
            raise RuntimeError("cannot read this")
        time.sleep(1000)
    return 1.0
'''


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model and tokenizer of tiny.py, saved."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def own_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to work in that has a user's own package: ``own.tasks``."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "own").mkdir()
    (folder / "own" / "__init__.py").touch()
    (folder / "own" / "tasks.py").write_text(OWN_TASKS)
    return folder
