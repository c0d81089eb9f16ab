"""Runs that two processes make: stopped by a signal to one of them, evaluated by both, resumed."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import pytest
import torch
import transformers
from run_cases import steps, untimed, weights, words
from transformers import AutoModelForCausalLM, AutoTokenizer

from covgrpo.errors import UserError
from covgrpo.evaluation import EvalSettings
from covgrpo.runs.options import TrainOptions
from covgrpo.runs.record.folder import RunFolder
from covgrpo.runs.sharded import check_evaluations
from covgrpo.runs.trainer_config import _state, trainer_config
from covgrpo.tasks import PromptFormat, load_task
from covgrpo.verify import VerifierPool

pytestmark = pytest.mark.slow

evaluation = import_module("covgrpo.evaluation.evaluate")  # the package has a function of that name

EVALUATE = [
    "--evaluate", "--eval-steps", "2", "--eval-problems", "5", "--eval-samples", "3", "--eval-steps-samples", "2",
    "--eval-batch-size", "2", "--eval-task", "addition:?max=9",
]  # fmt: skip
THRICE = ["--num-iterations", "3", "--steps", "5"]

# What the processes run, in this order; each test looks at some of it.
DDP = {
    "whole": {"argv": words("pair")},
    "stopped": {"argv": words("stopped-by-1"), "stop": [1, 3]},
    "resumed": {"argv": words("stopped-by-1", "--resume")},
    "whole with updates": {"argv": words("pair-thrice", *THRICE)},
    "stopped between updates": {"argv": words("stopped-by-0", *THRICE), "stop": [0, 2]},
    "resumed between updates": {"argv": words("stopped-by-0", *THRICE, "--resume")},
    "evaluated": {"argv": words("evaluated-pair", *EVALUATE, "--steps", "3")},
    "evaluated further": {"argv": words("evaluated-pair", *EVALUATE, "--steps", "4", "--resume")},
    "no folder": {"argv": words("own")},
    "apart": {"argv": words("parts", "--steps", "2"), "apart": "apart"},
    "resumed apart": {"argv": words("parts", "--resume"), "apart": "apart"},
    "one whole": {
        "argv": words("parts", "--resume"),
        "apart": "apart",
        "copy": [f"{i}parts/checkpoint-2" for i in ("apart/", "")],
    },
}
FSDP2 = {
    "evaluated": {"argv": words("evaluated-shards", *EVALUATE, "--steps", "3")},
    "stopped": {"argv": words("stopped-shards"), "stop": [1, 3]},
    "resumed": {"argv": words("stopped-shards", "--resume")},
    "whole": {"argv": words("shards")},
    "at the end": {"argv": words("shards-again", "--resume"), "copy": ["shards", "shards-again"]},
}


def launch(here: Path, cases: dict[str, dict[str, Any]], engine: str) -> dict[str, list[dict[str, Any]]]:
    """What came of each case on each of two processes; killed with all that they started when they take too long."""
    (here / f"{engine}.json").write_text(json.dumps(list(cases.values())))
    script = str(Path(__file__).with_name("process_cases.py"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    argv = [*command, f"{engine}.json", f"results-{engine}", engine]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(argv, cwd=here, env=environment, **options)
    try:
        out, _ = process.communicate(timeout=900)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # torchrun hands it on and kills what is left after 30 s
        out, _ = process.communicate()
    by_rank = [json.loads((here / f"results-{engine}.{rank}.json").read_text()) for rank in (0, 1)]
    assert process.returncode == 0, f"after {len(by_rank[0])} cases: {out[-3000:]}"
    return dict(zip(cases, (list(pair) for pair in zip(*by_rank, strict=True)), strict=True))


@pytest.fixture(scope="module")
def ddp(here: Path) -> dict[str, list[dict[str, Any]]]:
    for name in ("own", "tiny"):
        shutil.copytree(here / name, here / "apart" / name)
    return launch(here, DDP, "ddp")


@pytest.fixture(scope="module")
def fsdp2(here: Path) -> dict[str, list[dict[str, Any]]]:
    return launch(here, FSDP2, "fsdp2")


def codes(results: dict[str, list[dict[str, Any]]], case: str) -> list[int]:
    return [of_rank["code"] for of_rank in results[case]]


# --- one run of two processes --------------------------------------------------------------------------------------


def test_the_first_process_writes_and_prints(ddp: dict[str, list[dict[str, Any]]], here: Path) -> None:
    assert codes(ddp, "whole") == [0, 0]
    first, second = ddp["whole"]
    assert first["out"].count("run folder:") == 1 and "step    6/6" in first["out"] and second["out"] == ""
    assert steps(here / "pair") == [1, 2, 3, 4, 5, 6]
    assert (here / "pair" / "checkpoint-6" / "rng_state_1.pth").exists()
    assert AutoModelForCausalLM.from_pretrained(here / "pair" / "model").num_parameters() > 0


def test_a_folder_that_cannot_be_used_ends_both(ddp: dict[str, list[dict[str, Any]]]) -> None:
    assert codes(ddp, "no folder") == [2, 2]
    assert all("own is a folder with other files and no run" in of_rank["err"] for of_rank in ddp["no folder"])


# --- stopped -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "whole", "step", "stopped", "resumed"),
    [
        ("stopped-by-1", "pair", 3, "stopped", "resumed"),
        ("stopped-by-0", "pair-thrice", 2, "stopped between updates", "resumed between updates"),
    ],
)
def test_a_signal_to_one_process_stops_both(
    ddp: dict[str, list[dict[str, Any]]], here: Path, name: str, whole: str, step: int, stopped: str, resumed: str
) -> None:
    """After the same step, with a checkpoint from which the run ends as one that was not stopped, to the bit."""
    assert codes(ddp, stopped) == [128 + signal.SIGTERM, 0]  # the first process says so
    assert f"stopped at step {step} with a checkpoint" in ddp[stopped][0]["out"]
    assert codes(ddp, resumed) == [0, 0]
    assert f"resuming {name} from step {step}" in ddp[resumed][0]["out"]
    assert untimed(here / name) == untimed(here / whole)
    assert weights(here / name) == weights(here / whole)


def test_a_signal_stops_sharded_processes(fsdp2: dict[str, list[dict[str, Any]]], here: Path) -> None:
    assert codes(fsdp2, "stopped") == [128 + signal.SIGTERM, 0]
    assert codes(fsdp2, "resumed") == codes(fsdp2, "at the end") == [0, 0]
    assert "resuming stopped-shards from step 3" in fsdp2["resumed"][0]["out"]
    assert "resuming shards-again from step 6" in fsdp2["at the end"][0]["out"]
    assert untimed(here / "stopped-shards") == untimed(here / "shards")
    stopped, whole = (
        AutoModelForCausalLM.from_pretrained(here / name / "model") for name in ("stopped-shards", "shards")
    )
    for name, tensor in whole.state_dict().items():
        assert torch.equal(stopped.state_dict()[name], tensor), name


def test_a_model_that_is_whole_already_is_not_written_again(fsdp2: dict[str, list[dict[str, Any]]], here: Path) -> None:
    """The first process would write it while the others may still read it."""
    assert codes(fsdp2, "at the end") == [0, 0]
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        first, again = ((here / run / "model" / name).stat().st_mtime_ns for run in ("shards", "shards-again"))
        assert first == again, name


def test_a_process_without_its_part_of_the_checkpoint_ends_both(ddp: dict[str, list[dict[str, Any]]]) -> None:
    assert codes(ddp, "apart") == [0, 0]
    sentences = {
        "resumed apart": "parts/checkpoint-2 lacks rng_state_1.pth of other processes",
        "one whole": "cannot go on from parts/checkpoint-2: process 1 does not find covgrpo_state.json, trainer_state",
    }
    for case, sentence in sentences.items():
        assert codes(ddp, case) == [2, 2]
        assert all(of_rank["err"].count(sentence) == 1 for of_rank in ddp[case])


# --- evaluated -----------------------------------------------------------------------------------------------------


def assert_measured(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Of each problem the same, means within rounding."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value), name


def measured(model: Any, here: Path, monkeypatch: pytest.MonkeyPatch, processes: int) -> list[dict[str, Any]]:
    """What several processes measure with EVALUATE's settings, one after the other in this one."""
    monkeypatch.syspath_prepend(here)
    task, tokenizer = load_task("own.tasks:letters"), AutoTokenizer.from_pretrained(here / "tiny")
    how: dict[str, Any] = {"max_completion_length": 4, "seed": 0, "batch_size": 2, "processes": processes}
    parts: list[list[Any]] = []
    kept = evaluation._Runner.run

    def run(self: Any, repeats: int, temperature: float, *rest: Any) -> Any:
        parts.clear()
        for process in range(processes):
            settings = EvalSettings(**{**how, "process": process})
            with monkeypatch.context() as patch:
                patch.setattr(evaluation, "gathered", lambda done: parts.append(done) or [[]] * processes)
                patch.setattr(evaluation, "_in_order", lambda *_: [])
                kept(dataclasses.replace(self, settings=settings), repeats, temperature)
        with monkeypatch.context() as patch:
            patch.setattr(evaluation, "gathered", lambda done: parts)
            return kept(self, repeats, temperature, *rest)

    problems = task.problems("eval", 5, 0)
    with VerifierPool(task.verifier, timeout_s=60) as pool, monkeypatch.context() as patch:
        if processes > 1:
            patch.setattr(evaluation._Runner, "run", run)
        arguments = (model, tokenizer, problems, [], PromptFormat(), pool, EvalSettings(**how), {0.0: 1, 1.0: 2})
        return evaluation.evaluate_temperatures(*arguments)


def test_an_evaluation_does_not_depend_on_the_number_of_processes(
    inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From two on, sampled completions too; one process draws from one generator, as the kept evaluations did."""
    model = AutoModelForCausalLM.from_pretrained("tiny", dtype=torch.float32)
    alone, *several = (measured(model, inside, monkeypatch, processes) for processes in (1, 2, 3, 7))
    for found in several:
        assert_measured(found[0], alone[0])
        assert_measured(found[1], several[0][1])
        assert found[1]["correct"] != [] and found[1]["mean_length"] > 1


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_all_processes_evaluate(
    engine: str, inside: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = request.getfixturevalue(engine)
    assert codes(results, "evaluated") == [0, 0]
    run = RunFolder(inside / {"ddp": "evaluated-pair", "fsdp2": "evaluated-shards"}[engine])
    records = run.read_evaluations()
    assert [record["step"] for record in records] == {"ddp": [0, 2, 3, 4], "fsdp2": [0, 2, 3]}[engine]
    tiny, trained = (AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32) for p in ("tiny", run.model))
    for found, wanted in zip(records[0]["results"], measured(tiny, inside, monkeypatch, 2), strict=True):
        assert_measured(found, wanted)
    assert {record["other"]["n"] for record in records} == {5}
    # The last record has three samples; greedy is what one process measures on the model that was saved.
    greedy = measured(trained, inside, monkeypatch, 1)[0]
    assert_measured(records[-1]["results"][0], greedy)
    kept = json.loads((run.path / "eval.json").read_text())
    assert kept["after"]["greedy"]["accuracy"] == pytest.approx(greedy["accuracy"], rel=1e-4)
    assert kept["before"]["n"] == 5 and kept["before"]["sampled"] != kept["after"]["sampled"]
    whole = [record["results"][1]["correct"] for record in records]
    assert all(len(correct) == 5 for correct in whole)


def test_evaluations_change_nothing_of_a_run_of_two_processes(ddp: dict[str, list[dict[str, Any]]], here: Path) -> None:
    assert codes(ddp, "evaluated further") == [0, 0]
    assert untimed(here / "evaluated-pair") == untimed(here / "pair")[:4]


def test_evaluations_change_nothing_of_a_sharded_run(fsdp2: dict[str, list[dict[str, Any]]], here: Path) -> None:
    assert untimed(here / "evaluated-shards") == untimed(here / "shards")[:3]


@pytest.mark.parametrize(
    ("variables", "zero3", "kind"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, False, "FSDP 1"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, False, "FSDP 1"),
        ({}, True, "DeepSpeed's ZeRO-3"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, False, None),
        ({}, False, None),
    ],
)
def test_where_the_policy_cannot_be_whole_evaluations_are_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], zero3: bool, kind: str | None
) -> None:
    for name in ("ACCELERATE_USE_FSDP", "FSDP_VERSION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(transformers.integrations, "is_deepspeed_zero3_enabled", lambda: zero3)
    for name, value in (("evaluate", True), ("eval_steps", 5)):
        options = TrainOptions(task="addition", **{name: value})
        said = f"{name} is {value}; under {kind} no process can forward the policy by itself"
        with pytest.raises(UserError, match=said) if kind else contextlib.nullcontext():
            check_evaluations(options, SimpleNamespace(fsdp_plugin_args=None))
    check_evaluations(TrainOptions(task="addition"), SimpleNamespace(fsdp_plugin_args=None))


def test_the_process_group_waits_as_long_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made before TRL's configuration, and keeps the timeout that it is made with."""
    made: list[dict[str, Any]] = []
    state = SimpleNamespace(num_processes=1)
    monkeypatch.setattr(accelerate, "PartialState", lambda **options: made.append(options) or state)
    trainer_config(TrainOptions(task="addition", trl={"ddp_timeout": 7200}))
    trainer_config(TrainOptions(task="addition"))
    assert [options["timeout"].total_seconds() for options in made] == [7200, 1800]


def test_the_process_group_is_made_for_the_device_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []
    state = SimpleNamespace(num_processes=1)
    monkeypatch.setattr(accelerate, "PartialState", lambda **options: made.append(options["cpu"]) or state)

    for given in ({"use_cpu": True}, {}):
        for available in (True, False):
            monkeypatch.setattr(torch.accelerator, "is_available", lambda available=available: available)
            _state(given)
    assert made == [True, True, False, True]
