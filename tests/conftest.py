"""What several test files share: the tiny model, tasks of a user's own, folders to run in, a cache of models."""

import functools
import gc
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from covgrpo.cpu_defaults import set_cpu_defaults

set_cpu_defaults()  # before torch: some tests run several processes on the same cores
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # the workers share the cores, and so do the processes that they start
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

import accelerate.utils.imports  # noqa: E402
import torch  # noqa: E402
from tiny import tiny_model, tiny_tokenizer  # noqa: E402

from covgrpo.models import builtin, convert  # noqa: E402

# A training run of the tiny model spends a third of its time on two things: accelerate reads the metadata of peft anew
# for each micro-batch, and collects garbage among all objects that the libraries have made.
accelerate.utils.imports._is_package_available = functools.cache(accelerate.utils.imports._is_package_available)


def pytest_collection_finish() -> None:
    """Leave what the libraries and test files have made out of garbage collections."""
    gc.collect()
    gc.freeze()


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


@pytest.fixture
def work(tmp_path: Path, tiny_folder: Path, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with the model beside it, as ../tiny; own.tasks can be imported."""
    here = tmp_path / "here"
    here.mkdir()
    (tmp_path / "tiny").symlink_to(tiny_folder)
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [*sys.path, str(own_folder)])
    return here


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COVGRPO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def conversions(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Replaces the conversion by one that writes three small files; lists its calls."""
    calls: list[Path] = []

    def fake(gguf: Path, folder: Path, title: str, *rest: object) -> None:
        calls.append(folder)
        for file in ("config.json", "tokenizer.json", "model.safetensors"):
            (folder / file).write_text(f"{file} of {title}")

    monkeypatch.setattr(convert, "convert_gguf", fake)
    monkeypatch.setattr(builtin, "provide_file", lambda wheel, work: work / "x.gguf")
    return calls


@pytest.fixture(scope="session")
def here(own_folder: Path, tiny_folder: Path) -> Path:
    """The folder that these runs are made in: own/tasks.py and tiny/ are there."""
    shutil.copytree(tiny_folder, own_folder / "tiny")
    return own_folder


@pytest.fixture
def inside(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same as the current folder, for runs in this process, which gets its import path and threads back."""
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", sys.path[:])
    threads = torch.get_num_threads()
    yield here
    torch.set_num_threads(threads)
