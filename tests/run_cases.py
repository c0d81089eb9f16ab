"""Runs in processes of their own, and what they leave."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from warm_start import warm_python

LETTERS = [
    "train", "--task", "own.tasks:letters", "--model", "tiny", "--steps", "6", "--prompts-per-step", "2",
    "--num-generations", "4", "--max-completion-length", "4", "--save-steps", "2", "--learning-rate", "1e-3",
    "--threads", "1", "--verifier-timeout", "60",
]  # fmt: skip


def words(output: str, *more: str) -> list[str]:
    return [*LETTERS, "--output", output, *more]


@dataclass
class Running:
    """A run in a process of its own, with its output in files; ``cold``: Python starts as a user starts it."""

    here: Path
    argv: list[str]
    variables: dict[str, str] = field(default_factory=dict)
    cold: bool = False

    def __post_init__(self) -> None:
        self.files = [Path(tempfile.mkstemp(dir=self.here, suffix=".txt")[1]) for _ in range(2)]
        with self.files[0].open("w") as out, self.files[1].open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable if self.cold else warm_python(), "-m", "covgrpo", *self.argv],
                cwd=self.here,
                env={**os.environ, "OMP_NUM_THREADS": "1", **self.variables},
                stdout=out,
                stderr=err,
            )

    @property
    def out(self) -> str:
        return self.files[0].read_text()

    @property
    def err(self) -> str:
        return self.files[1].read_text()

    def wait_for(self, condition: Callable[[], bool], limit_s: float = 90) -> None:
        deadline = time.monotonic() + limit_s
        while not condition():
            assert self.process.poll() is None, self.out + self.err
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def finish(self, limit_s: float = 90) -> int:
        try:
            return self.process.wait(limit_s)
        finally:
            self.process.kill()


def complete(here: Path, argv: list[str], cold: bool = False) -> str:
    """Run to the end in a process that has nothing to complain of; returns stdout."""
    run = Running(here, argv, cold=cold)
    assert run.finish() == 0, run.err
    assert run.err == ""
    return run.out


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def untimed(run: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in record.items() if name != "step_time" and not name.startswith("time/")}
        for record in metrics(run)
    ]


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def steps(run: Path) -> list[int]:
    return [record["step"] for record in metrics(run)]
