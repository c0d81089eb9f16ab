"""The verifier pool against verifiers that raise, hang, print, exit, eat memory or lie, and hostile answers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from covgrpo.errors import UserError
from covgrpo.runs.options import TrainOptions
from covgrpo.verify import MAX_ANSWER_CHARS, Verdict, VerifierPool
from covgrpo.verify import worker as worker_module

# --- verifiers, imported by the workers ----------------------------------------------------------------------------


def length(payload, answer):
    time.sleep(payload.get("sleep_s", 0))
    return min(1.0, len(answer) / 10)


def misbehave(payload, answer):
    """Does what the answer says; 1.0 for "fine"."""
    acts = {
        "raise": lambda: 1 / 0,
        "recurse": lambda: misbehave(payload, answer),
        "sys.exit": lambda: sys.exit(0),
        "os._exit": lambda: os._exit(3),
        "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
        "hang": lambda: time.sleep(1000),
        "spin": lambda: pow(9, 9**9),  # holds the interpreter lock
        "ignore signals": lambda: [signal.signal(s, signal.SIG_IGN) for s in (15, 14, 1)] and time.sleep(1000),
        "memory": lambda: bytearray(10**11),
        "memory in steps": lambda: [bytearray(10**7) for _ in range(10**5)],
        "nan": lambda: float("nan"),
        "inf": lambda: float("inf"),
        "two": lambda: 2,
        "negative": lambda: -0.5,
        "text": lambda: "1.0",
        "none": lambda: None,
        "true": lambda: True,
        "child": lambda: subprocess.Popen(["sleep", "1000"]).wait(),
    }
    if answer == "print":
        print('{"id": 0, "score": 0.0}', flush=True)
        os.write(1, b'{"id": 0, "score": 0.0}\n')
        os.system("echo more")
        return 0.75
    if answer == "read":
        return 0.5 if sys.stdin.read() == "" else 0.0
    return acts[answer]() if answer in acts else 1.0


def together(payload, answer):
    """1.0 where as many are at work at the same time as the payload says, in its folder."""
    Path(payload["folder"], answer).touch()
    deadline = time.monotonic() + 4
    while len(list(Path(payload["folder"]).iterdir())) < payload["count"]:
        if time.monotonic() > deadline:
            return 0.0
        time.sleep(0.01)
    return 1.0


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def await_end(pids: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(is_running, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


# --- one worker, every misbehaviour --------------------------------------------------------------------------------

EXPECTED = {
    "raise": ("error", "ZeroDivisionError"),
    "recurse": ("error", "RecursionError"),
    "sys.exit": ("error", "SystemExit"),
    "os._exit": ("crash", "exit code 3"),
    "segfault": ("crash", "exit code -11"),
    "hang": ("timeout", "1.5 s"),
    "spin": ("timeout", "1.5 s"),
    "ignore signals": ("timeout", "1.5 s"),
    "memory": ("memory", "MemoryError"),
    "memory in steps": ("memory", "MemoryError"),
    "nan": ("error", "nan"),
    "inf": ("error", "inf"),
    "two": ("error", "2.0"),
    "negative": ("error", "-0.5"),
    "text": ("error", "str"),
    "none": ("error", "NoneType"),
    "x" * (MAX_ANSWER_CHARS + 1): ("error", "characters"),
}


@pytest.mark.slow
def test_each_misbehaviour_costs_only_its_item(caplog):
    with VerifierPool(f"{__name__}:misbehave", timeout_s=1.5, memory_gib=0.25) as pool:
        answers = [answer for bad in EXPECTED for answer in (bad, "fine")]
        start = time.monotonic()
        verdicts = pool.score([({}, answer) for answer in answers])
        assert time.monotonic() - start < 40
        assert all(verdict == Verdict(1.0) for verdict in verdicts[1::2])
        for (bad, (failure, detail)), verdict in zip(EXPECTED.items(), verdicts[::2], strict=True):
            assert (verdict.score, verdict.failure) == (0.0, failure), (bad[:20], verdict)
            assert detail in verdict.detail
        assert pool.failures == {"error": 10, "crash": 2, "timeout": 3, "memory": 2}
        assert sum("failed on an answer" in record.message for record in caplog.records) == 4  # once a kind


@pytest.mark.slow
def test_what_a_verifier_prints_or_reads_does_not_touch_the_protocol():
    with VerifierPool(f"{__name__}:misbehave", timeout_s=5.0) as pool:
        scores = [v.score for v in pool.score([({}, a) for a in ("print", "read", "true", "print", "fine")])]
        assert scores == [0.75, 0.5, 1.0, 0.75, 1.0]
        assert not pool.failures


@pytest.mark.slow
def test_order_and_verdicts_do_not_depend_on_the_number_of_workers():
    items = [({"sleep_s": 0.05 * (i % 3 == 0)}, "x" * (i % 11)) for i in range(24)]
    by_workers = {}
    for num_workers in (1, 3):
        with VerifierPool(f"{__name__}:length", num_workers=num_workers) as pool:
            by_workers[num_workers] = pool.score(items)
            assert len(pool.worker_pids()) == num_workers
            assert pool.score([]) == []
    assert by_workers[1] == by_workers[3] == [Verdict((i % 11) / 10) for i in range(24)]


@pytest.mark.slow
def test_large_payloads_and_strange_text_pass_whole():
    payload = {"blob": "é\ud800\u2028" * 200_000}  # far more than a pipe holds
    with VerifierPool(f"{__name__}:length", timeout_s=20) as pool:
        answers = ["\ud800", "\u2028\n\x00", "x" * MAX_ANSWER_CHARS]
        assert [v.score for v in pool.score([(payload, a) for a in answers])] == [0.1, 0.3, 1.0]


# --- life and death ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_close_leaves_no_process_and_refuses_work():
    pool = VerifierPool(f"{__name__}:length", num_workers=2)
    assert pool.worker_pids() == []  # started lazily
    pool.score([({}, "a"), ({}, "b")])
    pids = pool.worker_pids()
    assert len(pids) == 2 and all(map(is_running, pids))
    pool.close()
    pool.close()
    assert not any(map(is_running, pids))
    with pytest.raises(RuntimeError, match="closed"):
        pool.score([({}, "a")])


@pytest.mark.slow
def test_a_killed_worker_takes_its_children_along():
    before = set(_pids_of("sleep"))
    with VerifierPool(f"{__name__}:misbehave", timeout_s=1.0) as pool:
        assert pool.score([({}, "child")])[0].failure == "timeout"
    assert await_end(sorted(set(_pids_of("sleep")) - before), 2)


def _pids_of(command: str) -> list[int]:
    own = [p for p in Path("/proc").iterdir() if p.name.isdigit()]
    return [int(p.name) for p in own if _read(p / "comm").strip() == command and "1000" in _read(p / "cmdline")]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


@pytest.mark.slow
def test_a_worker_that_died_while_idle_is_replaced_at_no_items_cost():
    with VerifierPool(f"{__name__}:length") as pool:
        pool.score([({}, "a")])
        (pid,) = pool.worker_pids()
        os.kill(pid, signal.SIGKILL)
        await_end([pid], 2)
        while not pool._workers[0].has_ended():  # a process with threads ends a moment after its main one
            time.sleep(0.01)
        assert pool.score([({}, "ab")]) == [Verdict(0.2)]
        assert not pool.failures


@pytest.mark.slow
def test_an_interrupted_call_leaves_no_stale_answer(monkeypatch):
    with VerifierPool(f"{__name__}:length") as pool:
        pool.score([({}, "a")])

        def interrupt(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(pool, "_wait", interrupt)
            with pytest.raises(KeyboardInterrupt):
                pool.score([({"sleep_s": 0.2}, "a" * 9)])
        assert pool.score([({}, "ab")]) == [Verdict(0.2)]


@pytest.mark.slow
@pytest.mark.parametrize("act", ["hang", "fine"])
def test_workers_end_when_the_trainer_is_killed(act):
    script = (
        "import sys, threading, time\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from covgrpo.verify import VerifierPool\n"
        f"pool = VerifierPool({__name__ + ':misbehave'!r}, timeout_s=100)\n"
        "pool.score([({}, 'fine')])\n"
        f"threading.Thread(target=pool.score, args=([({{}}, {act!r})],), daemon=True).start()\n"
        "time.sleep(0.3); print(pool.worker_pids()[0], flush=True); time.sleep(100)\n"
    )
    trainer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    pid = int(trainer.stdout.readline())
    assert is_running(pid)
    trainer.kill()
    trainer.wait()
    trainer.stdout.close()
    assert await_end([pid], 5)


@pytest.mark.slow
def test_no_worker_outlives_a_trainer_that_just_ends():
    script = (
        "from covgrpo.verify import VerifierPool\n"
        "pool = VerifierPool('covgrpo.tasks.addition:score')\n"
        "pool.score([({'sum': 1}, '1')]); print(pool.worker_pids()[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not is_running(int(done.stdout)) and done.stderr == ""


def test_the_cpu_limit_ends_a_worker_that_nobody_watches():
    # alone, as when its pool was killed: 'spin' holds the interpreter lock, only the kernel can end it
    worker = subprocess.Popen(
        [sys.executable, "-m", "covgrpo.verify.worker", f"{__name__}:misbehave", "--cpu-s=1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    out, _ = worker.communicate(json.dumps({"id": 0, "payload": {}, "answer": "spin"}).encode() + b"\n", timeout=30)
    assert out == b'{"ready": true}\n'
    assert worker.returncode == -signal.SIGXCPU


# --- a verifier that cannot start ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verifier", "word"),
    [
        ("no_such_module:f", "no_such_module"),
        (f"{__name__}:no_such_function", "no_such_function"),
        (f"{__name__}:EXPECTED", "not callable"),
    ],
)
def test_a_verifier_that_cannot_be_imported_is_the_users_error(verifier, word):
    with VerifierPool(verifier) as pool:
        with pytest.raises(UserError, match=word):
            pool.score([({}, "a")])
        assert pool.worker_pids() == []


LARGE = """
import mmap

RESERVED = mmap.mmap(-1, 3 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)


def score(payload, answer):
    return 1.0
"""


@pytest.mark.slow
def test_a_verifier_that_reserves_more_than_the_default_needs_the_option(tmp_path, monkeypatch):
    """As one that imports torch does: address space counts, used or not."""
    (tmp_path / "large_verifier.py").write_text(LARGE)
    monkeypatch.syspath_prepend(tmp_path)
    options = {memory: TrainOptions(task="addition", verifier_memory=memory).verifier_limits() for memory in (2.0, 4.0)}
    assert TrainOptions(task="addition").verifier_limits() == options[2.0]
    said = r"'large_verifier:score' could not be imported under 2 GiB of address space \(verifier_memory\): .*memory"
    with VerifierPool("large_verifier:score", **options[2.0]) as pool, pytest.raises(UserError, match=said):
        pool.score([({}, "a")])
    with VerifierPool("large_verifier:score", **options[4.0]) as pool:
        assert pool.score([({}, "a")]) == [Verdict(1.0)]


def test_the_options_of_verifiers_are_checked():
    for options in ({"verifier_memory": 0.0}, {"verifier_memory": float("nan")}, {"verifier_workers": 0}):
        with pytest.raises(UserError, match=next(iter(options))):
            TrainOptions(task="addition", **options).check()


@pytest.mark.parametrize(
    ("cores", "processes", "workers"), [(1, None, 1), (2, None, 2), (64, None, 8), (64, "16", 4), (2, "4", 1)]
)
def test_as_many_workers_as_the_machine_has_to_spare(monkeypatch, cores, processes, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert TrainOptions(task="addition").verifier_limits()["num_workers"] == workers
    assert TrainOptions(task="addition", verifier_workers=3).verifier_limits()["num_workers"] == 3


def test_wrong_arguments_are_refused_before_anything_starts():
    for wrong in ("no_colon", ":f", "module:"):
        with pytest.raises(UserError, match="module:function"):
            VerifierPool(wrong)
    for name in ("num_workers", "timeout_s", "memory_gib"):
        with pytest.raises(UserError, match=name):
            VerifierPool("a:b", **{name: 0})


def test_warm_up_runs_once_at_import(tmp_path, monkeypatch):
    (tmp_path / "warm_verifier.py").write_text(
        "warmed = []\ndef warm_up(): warmed.append(1)\ndef score(p, a): return 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    worker_module._import_verifier("warm_verifier:score")
    assert sys.modules.pop("warm_verifier").warmed == [1]


# --- hostile answers to the real verifiers -------------------------------------------------------------------------


@pytest.mark.slow
def test_hostile_answers_to_math_verify_cost_seconds():
    refused = ["9**9**9**9", "$9^{9^{9^9}}$", "{" * 10_000 + "}" * 10_000, "$10000000000!$"]
    # Where the gold answer has a large power, an answer may have one.
    power = "(x + y + z + 3)^{4000}"
    with VerifierPool("covgrpo.tasks.jsonl:score", num_workers=2, timeout_s=1.0) as pool:
        start = time.monotonic()
        verdicts = pool.score([({"gold": "42"}, answer) for answer in [*refused, "42.0"]])
        verdicts += pool.score([({"gold": "(a + b)^{100}"}, power)] * 2)
        assert time.monotonic() - start < 20
    assert [verdict.score for verdict in verdicts] == [0, 0, 0, 0, 1, 0, 0]
    assert pool.failures["timeout"] == 2


@pytest.mark.slow
def test_reasoning_gym_in_a_worker_agrees_with_its_gold_answers():
    from covgrpo.tasks import load_task

    # ransom_note makes other entries in another process from the same seed: carried, not rebuilt
    with VerifierPool("covgrpo.tasks.reasoning_gym:score") as pool:
        for name in ("countdown", "ransom_note", "graph_color"):
            problems = load_task(f"reasoning_gym:{name}").problems("train", 8, 0)
            payloads = [json.loads(json.dumps(p.payload)) for p in problems]
            gold = pool.score(list(zip(payloads, [p.answer for p in problems], strict=True)))
            assert gold == [Verdict(1.0)] * 8, name
            wrong = pool.score([(payload, "no") for payload in payloads])
            assert [v.score for v in wrong] == [0.0] * 8


def test_rooms_import_without_torch_and_fast():
    script = (
        "import sys, covgrpo.tasks, covgrpo.verify.worker, covgrpo.rewards\n"
        "heavy = {'torch', 'transformers', 'trl', 'reasoning_gym', 'math_verify', 'numpy', 'sympy'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
