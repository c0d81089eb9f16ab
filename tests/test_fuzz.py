"""A short form of scripts/fuzz.py: inputs of a fixed seed end in success or in one sentence; what it would notice."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import fuzz
import fuzz_inputs

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and reads /proc")
INPUTS = 160


def test_inputs_of_a_fixed_seed_end_well(tmp_path: Path) -> None:
    """In a process of its own: it forks, which one that other tests have started threads in should not."""
    command = [sys.executable, fuzz.__file__, str(INPUTS), "--seed", "24", "--keep", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f'"inputs": {INPUTS}, "seed": 24, "start": 0, "failures": 0' in done.stdout
    assert {fuzz_inputs.kind_of(24, i) for i in range(INPUTS)} == set(fuzz_inputs.KINDS), "each kind was among them"
    assert list(tmp_path.iterdir()) == []


def test_an_input_is_the_same_each_time() -> None:
    first = [fuzz_inputs.one_input(3, i) for i in range(50)]
    assert first == [fuzz_inputs.one_input(3, i) for i in range(50)]
    assert [given.kind for given in first] == [fuzz_inputs.kind_of(3, i) for i in range(50)]


GIVEN = fuzz.Input("file", [], "c.yaml", b"")


def say(text: str, code: int) -> int:
    sys.stderr.write(text)
    return code


@pytest.mark.parametrize(
    ("does", "wrong"),
    [
        (lambda words: 1 / 0, "ZeroDivisionError"),
        (lambda words: 1, "exit code 1"),
        (lambda words: say("covgrpo: a\nb\n", 2), "not one sentence"),
        (lambda words: say("covgrpo: a\x1b[2J\n", 2), "not one sentence"),
        (lambda words: say("Traceback\n", 0), "Traceback"),
        (lambda words: print("\ud800"), "UnicodeEncodeError"),
        (lambda words: sys.exit(3), "exit code 3"),
        (lambda words: say("covgrpo: wrong.\n", 2), ""),
        (lambda words: fuzz._accept(), ""),
        (lambda words: 0, ""),
    ],
)
def test_what_is_a_failure(does, wrong: str) -> None:
    found = fuzz.fault(GIVEN, does)
    assert found.startswith(wrong) if wrong else found == ""


def in_a_fork(does) -> tuple[int, list[tuple[int, str]]]:
    """What ``forked_batch`` makes of one input that does this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fuzz, "run_batch", lambda seed, numbers, tell: tell(0, fuzz.fault(GIVEN, does)))
        done, failures, _ = fuzz.forked_batch(0, range(1), Path.cwd())
    return done, failures


def _write_outside(words: list[str]) -> int:
    Path("/tmp/covgrpo-fuzz-outside").write_text("x")
    return 0


def _connect(words: list[str]) -> int:
    socket.create_connection(("127.0.0.1", 9))
    return 0


def _hang(words: list[str]) -> int:
    while True:
        pass


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a fork where there are threads: these do no work
@pytest.mark.parametrize(
    ("does", "wrong"),
    [
        (_write_outside, "PermissionError"),
        (_connect, "OSError: no network and no processes here"),
        (lambda words: subprocess.run(["true"], check=False).returncode, "OSError: no network"),
        (lambda words: len(bytearray(3 * 2**30)), "MemoryError"),
        (lambda words: os._exit(3), "the process ended with status"),
        (_hang, "more than 0.2 s"),
    ],
)
def test_what_no_command_may_do(does, wrong: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fuzz, "LIMIT_S", 0.2)
    done, ((number, found),) = in_a_fork(does)
    assert (done, number) == (1, 0) and found.startswith(wrong)
    assert not Path("/tmp/covgrpo-fuzz-outside").exists()


def test_what_is_tried_and_swallowed_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)

    def swallow(words: list[str]) -> int:
        try:
            return _write_outside(words)
        except OSError:
            return 0

    _, ((_, found),) = in_a_fork(swallow)
    assert found.startswith("tried open /tmp/covgrpo-fuzz-outside")


def test_a_process_that_says_nothing_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import time

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fuzz, "WALL_LIMIT_S", 0.3)
    assert in_a_fork(lambda words: time.sleep(60)) == (1, [(0, "more than 0.3 s by the clock")])
