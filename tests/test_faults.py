"""The campaigns of scripts/faults.py, a few faults of each, and what they found."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_cases import words

from covgrpo.cli import main
from covgrpo.errors import UserError
from covgrpo.evaluation.generation import Drawn, GenerationSettings, draw_all
from covgrpo.runs.record.folder import RunFolder

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "faults.py"
CONFIG = {"options": {"seed": 0}}
PROMPTS = {name: [{"role": "user", "content": name}] for name in ("a", "b", "c")}
SETTINGS = GenerationSettings(batch_size=1)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux") or shutil.which("cc") is None, reason="needs Linux and cc")
def test_a_few_faults_of_each_kind(tmp_path: Path) -> None:
    counts = {"moments": 1, "operations": 2, "full": 1, "terms": 0, "evals": 1, "damaged": 1}
    flags = [word for name, count in counts.items() for word in (f"--{name}", str(count))]
    command = [sys.executable, str(SCRIPT), *flags, "--no-single", "--json", "found.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert sum(campaign["count"] for campaign in found) == 7  # eval is killed once and starved once
    assert not any(campaign["failures"] for campaign in found)


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", CONFIG, lock=True)
    before = sorted(path.name for path in run.path.iterdir())
    with pytest.raises(UserError, match=r"another process is at work in .*run; wait for its end or choose another"):
        RunFolder.create(run.path, CONFIG, resume=True, lock=True)
    assert sorted(path.name for path in run.path.iterdir()) == before
    run.release()
    RunFolder.create(run.path, CONFIG, resume=True, lock=True).release()
    assert (run.path / "resume-1.json").exists()


def test_a_run_that_was_killed_before_it_began_is_started_anew(tmp_path: Path) -> None:
    for name in ("environment.json", ".config.json.12.tmp", ".probe-x"):
        (tmp_path / name).write_text("{")
    RunFolder.create(tmp_path, CONFIG)
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG
    assert not (tmp_path / ".config.json.12.tmp").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.json").touch()
    with pytest.raises(UserError, match="other files and no run"):
        RunFolder.create(tmp_path / "other", CONFIG)


def test_what_a_killed_process_wrote_half_goes_on_resuming(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, CONFIG)
    for name in (".metrics.jsonl.7.tmp", ".resume-1.json.8.tmp"):
        (tmp_path / name).write_text("{")
    (tmp_path / ".mine").touch()
    RunFolder.create(tmp_path, CONFIG, resume=True)
    assert sorted(path.name for path in tmp_path.glob(".*")) == [".mine"]


class Letters:
    """An engine that draws the question; fails at the n-th batch."""

    def __init__(self, most: int = 9) -> None:
        self.most = most

    def draw(self, prompts, seed):
        self.most -= 1
        if self.most < 0:
            raise KeyboardInterrupt
        return [Drawn(messages[0]["content"], 1, False) for messages in prompts]


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_an_evaluation_killed_at_its_first_line_begins_anew(tmp_path: Path, share: float) -> None:
    whole, records = tmp_path / "whole.jsonl", tmp_path / "records.jsonl"
    expected = draw_all(Letters, PROMPTS, SETTINGS, whole, {})
    head = whole.read_bytes().splitlines()[0]
    records.write_bytes(head[: int(share * len(head))])
    assert draw_all(Letters, PROMPTS, SETTINGS, records, {}) == expected
    assert records.read_bytes() == whole.read_bytes()


def test_going_on_does_not_risk_what_was_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = tmp_path / "records.jsonl"
    with pytest.raises(KeyboardInterrupt):
        draw_all(lambda: Letters(2), PROMPTS, SETTINGS, records, {})
    with records.open("a") as file:
        file.write('{"torn')
    before = records.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"cannot write .*records\.jsonl \(no space left on device\)"):
            draw_all(Letters, PROMPTS, SETTINGS, records, {})
    assert records.read_bytes() == before
    assert list(tmp_path.iterdir()) == [records]
    draw_all(Letters, PROMPTS, SETTINGS, records, {})
    assert [json.loads(line)["id"] for line in records.read_text().splitlines()[1:]] == list(PROMPTS)


@pytest.mark.slow
def test_a_clock_set_back_removes_no_new_checkpoint(inside: Path) -> None:
    """Checkpoints from the future, of which one was about to be removed when the run was killed."""
    flags = ["--save-steps", "1", "--schedule-steps", "5"]
    assert main(words("clock", *flags, "--steps", "3")) == 0
    future = time.time() + 86_400
    for number, name in enumerate(("checkpoint-3", "checkpoint-2")):
        os.utime(inside / "clock" / name, (future + number, future + number))
    assert main(words("clock", *flags, "--steps", "5", "--resume")) == 0
    assert sorted(path.name for path in (inside / "clock").glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]


@pytest.mark.slow
def test_a_run_goes_on_when_nobody_reads_its_output(here: Path) -> None:
    run = subprocess.Popen(
        [sys.executable, "-m", "covgrpo", *words("unread", "--steps", "3")],
        cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    )  # fmt: skip
    assert run.stdout.readline().startswith("covgrpo: tiny on own.tasks:letters")
    run.stdout.close()
    assert run.stderr.read() == "covgrpo: nobody reads the output any more; the run goes on without it\n"
    assert run.wait(60) == 0
    assert (here / "unread" / "model" / "model.safetensors").exists()
