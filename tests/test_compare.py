"""``covgrpo compare`` as a user runs it: a study from start to end, stopped, killed, shared out, and refused."""

import contextlib
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from run_cases import Running

pytestmark = pytest.mark.slow

STUDY = """
about: Does the harness work?
options:
  task: "own.tasks:letters"
  model: tiny
  threads: 1
  steps: 6
  prompts_per_step: 2
  num_generations: 4
  max_completion_length: 4
  save_steps: 1
  learning_rate: 1.0e-3
  verifier_timeout: 60
methods: [grpo, gaussian]
seeds: 2
evaluation:
  {problems: 6, every: 2, samples: 4, samples_between: 2, temperatures: [0.6, 1.0],
   harder: {task: "own.tasks:letters?question=Harder", max_completion_length: 3}}
outcome: accuracy@1
"""
KILLS = int(os.environ.get("COVGRPO_TEST_KILLS", "4"))


def compare(here: Path, *more: str) -> Running:
    (here / "study.yaml").write_text(STUDY)
    return Running(here, ["compare", "study.yaml", *more])


def done(here: Path, *more: str) -> Running:
    running = compare(here, *more)
    assert running.finish(300) == 0, running.out + running.err
    return running


def contents(folder: Path) -> dict[str, str]:
    """Tables and records, but for what names times and the machine."""
    found = {name: (folder / name).read_text() for name in ("results.md", "results.csv")}
    for path in (folder / "records").iterdir():
        value = json.loads(path.read_text())
        del value["environment"]
        found[path.name] = json.dumps(value)
    return found


def provisioned(folder: Path, here: Path) -> Path:
    for name in ("own", "tiny"):
        shutil.copytree(here / name, folder / name)
    return folder


@pytest.fixture
def folder(tmp_path: Path, here: Path) -> Path:
    return provisioned(tmp_path, here)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, here: Path) -> Path:
    return provisioned(tmp_path_factory.mktemp("study"), here)


@pytest.fixture(scope="module")
def undisturbed(shared: Path) -> Path:
    running = done(shared)
    assert "0 of 4 runs done, 4 to go" in running.out and "4/4" in running.out
    return shared / "study"


def test_a_study_from_start_to_end(undisturbed, shared):
    assert sorted(path.name for path in (undisturbed / "records").iterdir()) == [
        f"{method}--s{seed}.json" for method in ("gaussian", "grpo") for seed in (0, 1)
    ]
    assert not list((undisturbed / "work").iterdir())
    record = json.loads((undisturbed / "records" / "grpo--s1.json").read_text())
    assert len(record["curves"]["reward"]) == 6 and [e["step"] for e in record["evaluations"]] == [0, 2, 4, 6]
    last = record["evaluations"][-1]
    assert last["n"] == 6 and [r["temperature"] for r in last["results"]] == [0.0, 0.6, 1.0]
    assert [r["samples"] for r in last["results"]] == [1, 4, 4] and len(last["results"][1]["correct"]) == 6
    for entry in record["evaluations"]:
        harder = entry["other"]
        assert harder["n"] == 6 and all(result["mean_length"] <= 3 for result in harder["results"])
        between = entry["step"] in (2, 4)
        assert all(("correct" in result) != between for result in (*entry["results"], *harder["results"]))
    text = (undisturbed / "results.md").read_text()
    assert "harder problems: accuracy at the end, temperature 0.6" in text
    assert "4 of 4 runs" in text and "| gaussian |" in text
    before = {path: path.stat().st_mtime_ns for path in (undisturbed / "records").iterdir()}
    again = done(shared)
    assert "4 of 4 runs done, 0 to go" in again.out  # nothing is run twice
    assert before == {path: path.stat().st_mtime_ns for path in (undisturbed / "records").iterdir()}
    listed = done(shared, "--list")
    assert listed.out.count("done  ") == 4 and "4 of 4 runs done" in listed.out


def test_pairs_share_problems_and_random_numbers(undisturbed):
    records = {p.stem: json.loads(p.read_text()) for p in (undisturbed / "records").iterdir()}
    for seed in (0, 1):
        # before the first step the two methods are the same model on the same problems with the same draws
        grpo, gaussian = (records[f"{method}--s{seed}"]["evaluations"][0] for method in ("grpo", "gaussian"))
        assert grpo == gaussian
        assert records[f"grpo--s{seed}"]["curves"]["reward"][0] == records[f"gaussian--s{seed}"]["curves"]["reward"][0]
    assert records["grpo--s0"]["evaluations"][0] != records["grpo--s1"]["evaluations"][0]
    assert records["grpo--s0"]["curves"]["reward"] != records["gaussian--s0"]["curves"]["reward"]


def test_killed_at_random_it_ends_with_the_same_table(undisturbed, folder):
    """The study is killed (no warning), or stopped, or one of its runs is killed, ``KILLS`` times."""
    rng = random.Random(0)
    for number in range(KILLS):
        running = compare(folder)
        deadline = time.monotonic() + rng.uniform(0.5, 5)
        while running.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if running.process.poll() is None:
            if number % 4 == 3 and (workers := runs_in(folder)):
                os.kill(rng.choice(workers), signal.SIGKILL)
                time.sleep(0.5)
                running.process.kill()
            else:
                running.process.send_signal(signal.SIGTERM if number % 4 == 2 else signal.SIGKILL)
        running.process.wait(60)
    done(folder)
    assert contents(folder / "study") == contents(undisturbed)


def runs_in(folder: Path) -> list[int]:
    """Processes of a study's runs, by their current folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            words = (process / "cmdline").read_bytes().split(b"\0")
            if (process / "cwd").readlink() == folder and b"covgrpo.studies.run_process" in words:
                found.append(int(process.name))
    return found


def test_a_signal_stops_with_a_checkpoint_and_leaves_no_process(folder):
    running = compare(folder, "--workers", "1", "--only", "grpo--s0")
    metrics = folder / "study" / "work" / "grpo--s0" / "run" / "metrics.jsonl"
    running.wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 1)
    workers = runs_in(folder)
    running.process.send_signal(signal.SIGINT)
    assert running.finish() == 130
    assert "stopped; the same command goes on from here" in running.out
    assert workers and not any(Path(f"/proc/{pid}/stat").exists() for pid in workers)
    again = done(folder, "--workers", "1", "--only", "grpo--s0")
    assert "1/1" in again.out
    assert "1 of 4 runs" in (folder / "study" / "results.md").read_text()


def test_some_of_the_runs_are_named_by_parts_of_their_names(folder):
    (folder / "study.yaml").write_text(STUDY.replace("[grpo, gaussian]", "[grpo, gaussian, clip_cov]"))
    running = Running(folder, ["compare", "study.yaml", "--list", "--only", "gaussian--", "clip_cov--s1"])
    assert running.finish(60) == 0
    names = [line.split()[1] for line in running.out.splitlines() if line.startswith("open")]
    assert names == ["gaussian--s0", "gaussian--s1", "clip_cov--s1"]
    running = Running(folder, ["compare", "study.yaml", "--list", "--shard", "1/2", "--only", "grpo", "clip_cov--s1"])
    assert running.finish(60) == 0
    assert [line.split()[1] for line in running.out.splitlines() if line.startswith("open")] == ["grpo--s0"]


def test_shards_merge_into_the_same_tables(undisturbed, folder):
    for part in ("1/2", "2/2"):
        done(folder, "--shard", part, "--output", f"part{part[0]}")
    merged = folder / "study" / "records"
    merged.mkdir(parents=True)
    for path in folder.glob("part*/records/*.json"):
        path.rename(merged / path.name)
    done(folder, "--no-run")
    assert contents(folder / "study") == contents(undisturbed)


def test_a_run_of_another_study_with_the_same_options_is_not_run_again(undisturbed, folder):
    (folder / "longer.yaml").write_text(STUDY.replace("seeds: 2", "seeds: 3"))
    running = Running(folder, ["compare", "longer.yaml", "--adopt", str(undisturbed), "--only", "s0", "s1"])
    assert running.finish(60) == 0, running.err
    assert "4 records taken over" in running.out and "4 of 4 runs done, 0 to go" in running.out
    assert "4 of 6 runs" in (folder / "longer" / "results.md").read_text()


def test_a_run_that_fails_is_named_and_the_others_go_on(folder):
    (folder / "study.yaml").write_text(
        STUDY.replace("methods: [grpo, gaussian]", "methods: {bad: {method: grpo, model: nowhere}, grpo: {}}").replace(
            "seeds: 2", "seeds: 1"
        )
    )
    running = Running(folder, ["compare", "study.yaml"])
    assert running.finish(120) == 1
    assert "FAILED  bad--s0: cannot load model nowhere" in running.out
    assert "1 of 2 runs" in (folder / "study" / "results.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.yaml"], ["none.yaml"]),
        (["study.yaml", "--shard", "3"], ["--shard", "'3'"]),
        (["study.yaml", "--shard", "3/2"], ["3/2"]),
        (["study.yaml", "--workers", "0"], ["--workers", "0"]),
        (["study.yaml", "--only", "grpo", "nothing"], ["'nothing'"]),
        (["study.yaml", "--adopt", "elsewhere"], ["elsewhere", "no records"]),
        (["study.yaml", "--output", "study.yaml"], ["study.yaml"]),
    ],
)
def test_bad_input_is_one_sentence(folder, arguments, words):
    (folder / "study.yaml").write_text(STUDY)
    running = Running(folder, ["compare", *arguments])
    assert running.finish(60) == 2
    assert running.err.startswith("covgrpo: ") and running.err.count("\n") == 1
    assert all(word in running.err for word in words)
    assert sorted(path.name for path in folder.glob("study*")) == ["study.yaml"]


def test_a_changed_study_refuses_its_records(undisturbed, shared):
    changed = shared / "changed.yaml"
    changed.write_text(STUDY.replace("steps: 6", "steps: 7"))
    running = Running(shared, ["compare", "changed.yaml", "--output", "study"])
    assert running.finish(60) == 2
    assert "was made with steps = 6 and the study now says 7" in running.err
