"""Loggers of `--report-to`, each offline: what a run tells them arrives there. Without the package a test says so."""

import importlib.util
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_cases import command

from covgrpo.cli import main

pytestmark = pytest.mark.slow
INSTALL = "needs its package: pip install 'covgrpo[dashboards]'"


def trained(logger: str) -> None:
    assert main(command("--report-to", logger, "--steps", "2")) == 0


def test_tensorboard(work: Path) -> None:
    pytest.importorskip("tensorboard", reason=INSTALL)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained("tensorboard")
    (file,) = work.rglob("events.out.tfevents.*")
    assert file.is_relative_to(work / "out")
    events = EventAccumulator(str(file))
    events.Reload()
    for name in ("train/reward", "train/entropy", "train/cov/sigma"):
        assert [event.step for event in events.Scalars(name)] == [1, 2], name


def test_wandb(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason=INSTALL)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    trained("wandb")
    wandb.finish()
    (file,) = work.rglob("run-*.wandb")
    missing, deadline = {b"train/reward", b"train/entropy", b"train/cov/sigma"}, time.monotonic() + 30
    while missing and time.monotonic() < deadline:  # a process of its own writes the file, and may lag behind finish()
        missing -= {name for name in missing if name in file.read_bytes()}
        time.sleep(0.1)
    assert not missing


def test_trackio(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("trackio") is None:
        pytest.skip(INSTALL)
    monkeypatch.setenv("TRACKIO_DIR", str(work / "trackio"))  # read when it is imported, so in a process of its own
    words = command("--report-to", "trackio", "--steps", "2")
    subprocess.run([sys.executable, "-m", "covgrpo", *words], check=True, timeout=300)
    (file,) = (work / "trackio").glob("*.db")
    rows = sqlite3.connect(file).execute("select step, metrics from metrics").fetchall()
    assert all(name in str(rows) for name in ("train/reward", "train/entropy", "train/cov/sigma"))
