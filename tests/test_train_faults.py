"""Runs whose verifier misbehaves, that stop between updates, or that two processes make."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from run_cases import metrics, steps, untimed, weights, words
from transformers import AutoModelForCausalLM

from covgrpo.cli import main
from covgrpo.cli.display import Display
from covgrpo.runs.record.folder import RunFolder

pytestmark = pytest.mark.slow


# --- a verifier that misbehaves ------------------------------------------------------------------------------------


def test_own_verifier_that_raises_and_hangs(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN_FOLDER", str(inside))
    flags = ["--task-params", "verifier=own.tasks:moody", "--verifier-timeout", "1", "--samples-per-step", "8"]
    assert main(words("moody", *flags)) == 0
    assert {"raised", "hung"} <= {path.name for path in inside.iterdir()}
    assert steps(inside / "moody") == [1, 2, 3, 4, 5, 6]
    failures = [record["verifier/failures"] for record in metrics(inside / "moody")]
    assert failures[0] >= 2
    assert failures[1:] == [0.0] * 5
    samples = [json.loads(line) for line in (inside / "moody" / "samples.jsonl").read_text().splitlines()]
    zeros = [s for s in samples if s["step"] == 1 and s["completion"].strip() and s["rewards"]["correctness"] == 0]
    assert len(zeros) == failures[0]


def test_stop_between_the_updates_of_a_rollout_batch(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--num-iterations", "3", "--steps", "7"]
    assert main(words("thrice", *flags)) == 0
    show = Display.step

    def stop(self: Display, record: dict[str, Any]) -> None:
        show(self, record)
        if record["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Display, "step", stop)
        assert main(words("parted", *flags)) == 130
    assert steps(inside / "parted") == [1, 2]
    assert main(words("parted", *flags, "--resume")) == 0
    assert weights(inside / "parted") == weights(inside / "thrice")
    assert untimed(inside / "parted") == untimed(inside / "thrice")


def test_two_processes_write_one_run(here: Path) -> None:
    """`accelerate launch` on CPU: every process trains, the first one writes, and the run can be resumed."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "covgrpo"]
    for more in (["--steps", "2"], ["--steps", "3", "--resume"]):
        done = subprocess.run(
            [*launch, *words("two", "--evaluate", "--eval-problems", "2", *more)],
            cwd=here,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("run folder:") == 1
    assert [record["step"] for record in RunFolder(here / "two").read_metrics()] == [1, 2, 3]
    evaluation = json.loads((here / "two" / "eval.json").read_text())
    assert set(evaluation) == {"before", "after"}
    assert AutoModelForCausalLM.from_pretrained(here / "two" / "model").num_parameters() > 0
