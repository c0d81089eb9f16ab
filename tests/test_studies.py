"""Studies: which runs they make, and which records they have."""

import fcntl
import json
import subprocess
import sys
import threading

import pytest
from study_cases import STUDY, made_study, write_records

from covgrpo.errors import UserError
from covgrpo.studies import read_records, read_study
from covgrpo.studies.records import adopt, record_path
from covgrpo.studies.run_process import BUSY, Job, run_job
from covgrpo.trl.methods import METHODS

# --- which runs ----------------------------------------------------------------------------------------------------


def test_runs_are_every_combination_seed_by_seed(tmp_path):
    study = made_study(tmp_path)
    keys = [(run.seed, run.regime, run.method) for run in study.runs]
    expected = [
        (seed, regime, method)
        for seed in (3, 4, 5)
        for regime in ("easy", "hard")
        for method in ("grpo", "gaussian", "clip_cov")
        if method != "clip_cov" or seed in (3, 4)
    ]
    assert keys == expected
    assert study.baseline == "grpo" and study.regimes == ["easy", "hard"] and study.hard_regimes == ["hard"]
    assert len({run.id for run in study.runs}) == len(study.runs)


def test_options_come_from_the_axes(tmp_path):
    text = """
options: {task: addition, learning_rate: 1e-6, temperature: 0.7}
tasks: {sums: {task: "addition?max=20", temperature: 0.9}, words: {task: "digits:sort"}}
models: [smollm2-135m]
sweep: {learning_rate: [1e-5, 1e-4], num_iterations: [1, 4]}
methods: {grpo: {}, wide: {method: gaussian, weighting_scope: batch, learning_rate: 2e-4}}
evaluation: {every: 5, problems: 7}
"""
    study = made_study(tmp_path, text)
    assert len(study.runs) == 2 * 2 * 2 * 2
    assert study.regimes[0] == "smollm2-135m, sums, learning_rate=1e-05, num_iterations=1"
    by_id = {run.id: run.options for run in study.runs}
    one = by_id["smollm2-135m-words-learning_rate=1e-05-num_iterations=4--grpo--s0"]
    assert (one.task, one.learning_rate, one.num_iterations, one.temperature) == ("digits:sort", 1e-5, 4, 0.7)
    assert (one.method, one.seed, one.eval_steps, one.eval_problems) == ("grpo", 0, 5, 7)
    other = by_id["smollm2-135m-sums-learning_rate=1e-05-num_iterations=1--wide--s0"]
    assert (other.method, other.weighting_scope, other.learning_rate) == ("gaussian", "batch", 2e-4)
    assert (other.task, other.temperature) == ("addition?max=20", 0.9)


def test_a_second_set_of_held_out_problems(tmp_path):
    harder = 'harder: {task: "addition?max=99&min=50", max_completion_length: 9}'
    study = made_study(tmp_path, STUDY.replace("problems: 4,", f"problems: 4, {harder},"))
    assert {(run.options.eval_task, run.options.eval_task_length) for run in study.runs} == {
        ("addition?max=99&min=50", 9)
    }
    plain = made_study(tmp_path, name="plain")
    assert {(run.options.eval_task, run.options.eval_task_length) for run in plain.runs} == {("", None)}


def test_a_weighting_of_ones_own_may_have_any_name(tmp_path):
    study = made_study(tmp_path, STUDY.replace("gaussian: {}", "my own: {weighting: 'studies.ablations:NegativeSide'}"))
    options = next(run.options for run in study.runs if run.method == "my own")
    assert options.weighting == "studies.ablations:NegativeSide" and options.method in METHODS


def test_a_study_is_read_without_torch_or_trl():
    code = "import sys, covgrpo.studies.study_file; sys.exit(bool({'torch', 'trl', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_method_may_sit_out_a_regime(tmp_path):
    study = made_study(tmp_path, STUDY.replace("clip_cov: {seeds: 2}", "clip_cov: {regimes: [hard]}"))
    assert {run.regime for run in study.runs if run.method == "clip_cov"} == {"hard"}
    assert sum(run.method == "clip_cov" for run in study.runs) == 3
    with pytest.raises(UserError, match="'haard' is unknown; did you mean 'hard'"):
        made_study(tmp_path, STUDY.replace("clip_cov: {seeds: 2}", "clip_cov: {regimes: [haard]}"))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
def test_shards_are_a_partition_that_keeps_pairs(tmp_path, count):
    study = made_study(tmp_path)
    shards = [study.shard(index, count) for index in range(1, count + 1)]
    assert sorted(run.id for shard in shards for run in shard) == sorted(run.id for run in study.runs)
    homes = {}
    for index, shard in enumerate(shards):
        for run in shard:
            assert homes.setdefault((run.regime, run.seed), index) == index
    with pytest.raises(UserError, match="shard"):
        study.shard(count + 1, count)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("seeds: [3, 4, 5]", "seeds: [3, 3]"), ["seeds", "[3, 3]"]),
        (("seeds: [3, 4, 5]", "seeds: 0"), ["seeds", "0"]),
        (("outcome: accuracy@0.6", "outcome: accuracy@0.7"), ["outcome", "accuracy@0.7"]),
        (("outcome: accuracy@0.6", "margin: -0.1"), ["margin", "-0.1"]),
        (("outcome: accuracy@0.6", "margin: yes"), ["margin", "True"]),
        (("outcome: accuracy@0.6", "secondary: [entropi]"), ["secondary", "'entropi'", "'entropy'"]),
        (("outcome: accuracy@0.6", "secondary: entropy"), ["secondary", "'entropy'"]),
        (("hard_regimes: [hard]", "hard_regimes: [harder]"), ["hard_regimes", "'harder'", "'hard'"]),
        (("methods:", "method:"), ["'method'", "'methods'"]),
        (("{seeds: 2}", "{seeds: two}"), ["clip_cov", "'two'"]),
        (("clip_cov: {seeds: 2}", "clip_cov: {learning_rte: 2}"), ["'learning_rte'", "'learning_rate'"]),
        (("threads: 1", "seed: 1"), ["'seed'"]),
        (("grpo: {}, gaussian", "grpoo: {}, gaussian"), ["methods: grpoo", "'grpoo'", "'grpo'"]),
        (("gaussian: {}", "mine: {method: gausian}"), ["methods: mine", "'gausian'", "'gaussian'"]),
        (("every: 10, ", ""), ["every"]),
        (("every: 10", "evry: 10"), ["'evry'", "'every'"]),
        (("every: 10", "every: 10, hardr: {}"), ["evaluation", "'hardr'", "'harder'"]),
        (("every: 10", "every: 10, harder: {tsk: addition}"), ["harder", "'tsk'", "'task'"]),
        (("every: 10", "every: 10, harder: addition"), ["harder", "mapping", "'addition'"]),
        (("every: 10", "every: 10, harder: {max_completion_length: 9}"), ["eval_task_length is 9"]),
        (("num_iterations: 4", "num_iterations: 0"), ["num_iterations"]),
        (("grpo: {}, gaussian: {}", "'a b': {method: grpo}, 'a  b': {method: grpo}"), ["a-b"]),
        (("methods: {grpo: {}, gaussian: {}, clip_cov: {seeds: 2}}", ""), ["methods"]),
    ],
)
def test_a_wrong_study_is_one_sentence(tmp_path, change, words):
    assert change[0] in STUDY
    with pytest.raises(UserError) as caught:
        made_study(tmp_path, STUDY.replace(*change))
    assert all(word in str(caught.value) for word in [*words]), caught.value
    assert "\n" not in str(caught.value)


def test_no_such_study(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_study(tmp_path / "none.yaml")


# --- records -------------------------------------------------------------------------------------------------------


def test_records_are_read_back_and_others_refused(tmp_path):
    study = made_study(tmp_path)
    write_records(tmp_path, study, {("easy", "grpo", 3): 0.5})
    found = read_records(tmp_path, study.runs)
    assert list(found) == ["easy--grpo--s3"] and found["easy--grpo--s3"].options["steps"] == 20
    changed = made_study(tmp_path, STUDY.replace("steps: 20", "steps: 30"))
    with pytest.raises(UserError, match=r"easy--grpo--s3\.json was made with steps = 20 and the study now says 30"):
        read_records(tmp_path, changed.runs)
    path = tmp_path / "records" / "easy--grpo--s3.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "version": 2}))
    with pytest.raises(UserError, match="version is 2"):
        read_records(tmp_path, study.runs)
    del value["curves"]
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match="'curves' is missing"):
        read_records(tmp_path, study.runs)
    path.write_text("{")
    with pytest.raises(UserError, match="cannot read the record"):
        read_records(tmp_path, study.runs)


def test_records_of_the_same_runs_are_taken_over(tmp_path):
    """Those with the same options, seed and evaluation, under the names that this study gives them; once."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir(), new.mkdir()
    made = made_study(old)
    write_records(old, made, {("easy", "grpo", 3): 0.5, ("hard", "gaussian", 4): 0.25, ("easy", "clip_cov", 3): 0.75})
    text = STUDY.replace("{easy: {}, hard: {num_iterations: 4}}", "{several: {num_iterations: 4}, single: {}}")
    text = text.replace("clip_cov: {seeds: 2}", "ours: {method: gaussian}").replace("[hard]", "[several]")
    study = made_study(new, text, "again")
    assert [spec.id for spec in adopt("again", new, study.runs, old)] == [
        "single--grpo--s3", "several--gaussian--s4", "several--ours--s4",
    ]  # fmt: skip
    found = read_records(new, study.runs)
    assert {(r.regime, r.method, r.seed) for r in found.values()} == {
        ("single", "grpo", 3), ("several", "gaussian", 4), ("several", "ours", 4),
    }  # fmt: skip
    before = read_records(old, made.runs)["hard--gaussian--s4"]
    assert found["several--gaussian--s4"].evaluations == before.evaluations
    value = json.loads((new / "records" / "several--gaussian--s4.json").read_text())
    assert value["study"] == "again" and value["taken_from"] == {"study": "made", "run": "hard--gaussian--s4"}
    assert adopt("again", new, study.runs, old) == []
    assert sorted(path.name for path in new.iterdir()) == ["again.yaml", "records"]
    longer = made_study(new, STUDY.replace("samples: 16", "samples: 8"), "longer")
    assert adopt("longer", tmp_path / "none", longer.runs, old) == []
    with pytest.raises(UserError, match="holds no records"):
        adopt("again", new, study.runs, tmp_path)


def test_a_run_in_work_of_other_options_is_refused(tmp_path):
    """It would go on, and its record would claim the new options for all of its steps."""
    study = made_study(tmp_path)
    spec = study.runs[0]
    job = Job.of(study.name, spec, tmp_path / "work", record_path(tmp_path, spec))
    run = tmp_path / "work" / "run"
    run.mkdir(parents=True)
    for name, before in (("steps", 10), ("threads", 2), ("max_prompt_length", 9)):
        options = {**json.loads(job.to_json())["options"], name: before}
        (run / "config.json").write_text(json.dumps({"options": options}))
        with pytest.raises(
            UserError, match=f"{run} was made with {name} = {before} and the study now says .*remove the"
        ):
            run_job(job)
    assert (run / "config.json").exists() and not record_path(tmp_path, spec).exists()


@pytest.mark.parametrize(("held_s", "code"), [(0.3, 0), (5.0, BUSY)], ids=["ending", "at work"])
def test_a_process_that_is_just_ending_is_waited_for(tmp_path, monkeypatch, held_s, code):
    """As after a study was killed and started again at once; its run is finished, so that there is nothing to train."""
    monkeypatch.setattr("covgrpo.studies.run_process._ENDING_S", 1.0)
    study = made_study(tmp_path)
    spec = study.runs[0]
    job = Job.of(study.name, spec, tmp_path / "work", record_path(tmp_path, spec))
    for path in (tmp_path / "work" / "lock", record_path(tmp_path, spec)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with (tmp_path / "work" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        freeing = threading.Timer(held_s, fcntl.flock, (lock, fcntl.LOCK_UN))
        freeing.start()
        try:
            assert run_job(job) == code
        finally:
            freeing.cancel()
    assert (tmp_path / "work").exists() == bool(code)
