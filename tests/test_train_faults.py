"""Runs whose verifier misbehaves, or that stop between updates."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from run_cases import metrics, steps, untimed, weights, words

from covgrpo.cli import main
from covgrpo.cli.display import Display

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
    for name in ("samples.jsonl", "tokens.jsonl", "histograms.jsonl"):
        assert (inside / "parted" / name).read_bytes() == (inside / "thrice" / name).read_bytes(), name


def test_killed_when_its_last_checkpoint_was_there_and_an_older_one_still_to_go(inside: Path) -> None:
    flags = ["--steps", "3", "--save-steps", "1"]
    assert main(words("ended", *flags)) == 0
    names = sorted(path.name for path in (inside / "ended").iterdir())
    assert {"checkpoint-2", "checkpoint-3"} <= set(names) and "checkpoint-1" not in names
    shutil.copytree(inside / "ended" / "checkpoint-2", inside / "ended" / "checkpoint-1")
    shutil.rmtree(inside / "ended" / "model")
    assert main(words("ended", *flags, "--resume")) == 0
    assert sorted(path.name for path in (inside / "ended").iterdir() if path.name != "resume-1.json") == names


def test_an_evaluation_that_is_damaged_is_not_measured_anew(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--steps", "1", "--save-steps", "1", "--evaluate", "--eval-problems", "2", "--eval-samples", "1"]
    assert main(words("torn", *flags)) == 0
    (inside / "torn" / "eval.json").write_text('{"before": {"n": 2')
    capsys.readouterr()
    assert main(words("torn", *flags, "--resume")) == 2
    assert "eval.json (Expecting" in (error := capsys.readouterr().err) and error.count("\n") == 1
