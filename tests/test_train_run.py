"""Whole runs through the command line: what they leave behind, repeat, stop and go on from."""

import errno
import json
import math
import os
import platform
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from run_cases import Running, complete, metrics, steps, untimed, weights, words
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from covgrpo.cli import main
from covgrpo.cli.display import Display
from covgrpo.evaluation.evaluate import encode_prompt
from covgrpo.runs.record import recorder
from covgrpo.runs.record.folder import RunFolder
from covgrpo.tasks import PromptFormat, load_task

pytestmark = pytest.mark.slow


# --- what a run leaves ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def addition(here: Path) -> tuple[Path, str]:
    """A run on addition from a config file and flags, in a fresh process: its folder and what it printed."""
    (here / "demo.yaml").write_text(
        "task: addition\nmodel: tiny\nsteps: 9\nseed: 5\nprompts_per_step: 2\nnum_generations: 4\nlearning_rate: 1e-4\n"
        "max_completion_length: 4\nevaluate: true\neval_problems: 6\neval_samples: 2\ntask_params: {min: 1, max: 7}\n"
        "trl: {epsilon: 3e-1, top_k: 50}\n"
    )
    flags = ["--steps", "3", "--output", "addition", "--task-params", "max=8", "--trl", "epsilon=25e-2"]
    return here / "addition", complete(here, ["train", "--config", "demo.yaml", *flags], cold=True)


def test_run_folder(addition: tuple[Path, str]) -> None:
    run, _ = addition
    names = {"config.json", "environment.json", "metrics.jsonl", "samples.jsonl", "eval.json", "model", "checkpoint-3"}
    names |= {"tokens.jsonl", "histograms.jsonl"}
    assert names <= {path.name for path in run.iterdir()}
    records = metrics(run)
    assert [record["step"] for record in records] == [1, 2, 3]
    expected = {"reward", "entropy", "grad_norm", "learning_rate", "cov/mean", "cov/sigma", "step_time", "time/wall"}
    for record in records:
        assert expected <= set(record)
        assert all(isinstance(record[name], int | float) for name in expected)
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 3 * 4
    assert samples[0]["prompt"].startswith("What is ")
    assert samples[0]["rewards"].keys() == {"correctness", "format"}
    evaluation = json.loads((run / "eval.json").read_text())
    assert evaluation.keys() == {"before", "after"}
    assert evaluation["before"]["n"] == 6
    assert AutoModelForCausalLM.from_pretrained(run / "model").num_parameters() > 0
    assert RunFolder(run).latest_checkpoint() == run / "checkpoint-3"


def test_flags_win_over_the_config_file(addition: tuple[Path, str]) -> None:
    config = json.loads((addition[0] / "config.json").read_text())
    options = config["options"]
    assert (options["steps"], options["seed"], options["learning_rate"]) == (3, 5, 1e-4)
    assert options["task_params"] == {"min": 1, "max": 8}
    assert options["trl"] == {"epsilon": 0.25, "top_k": 50}
    assert (config["trainer"]["epsilon"], config["trainer"]["top_k"]) == (0.25, 50)
    assert config["task"] == "addition:?max=8"


def test_record_names_no_machine(addition: tuple[Path, str]) -> None:
    run, _ = addition
    for name in ("config.json", "environment.json"):
        text = (run / name).read_text()
        for private in (str(Path.home()), str(run.parent), platform.node()):
            assert len(private) < 3 or private not in text


def test_output_is_plain_lines(addition: tuple[Path, str]) -> None:
    run, out = addition
    assert "\x1b" not in out
    assert "\r" not in out
    lines = out.splitlines()
    assert lines[0] == "covgrpo: tiny on addition, gaussian, 3 steps of 2 x 4 completions, seed 5"
    assert [line.split()[:2] for line in lines[1:4]] == [["step", f"{step}/3"] for step in (1, 2, 3)]
    assert lines[4].startswith("accuracy, greedy (held-out, n=6) ")
    assert lines[5].startswith("accuracy, sampled (held-out, n=6) ")
    assert lines[6].startswith("entropy of the policy, nats a token ")
    assert lines[7].startswith("nothing was learnt in 3 steps: no two completions of a prompt earned different rewards")
    assert lines[8:] == [
        f"run folder: {run.name} (model, metrics.jsonl, samples.jsonl, config.json)",
        f"next: covgrpo report {run.name}   or load {run.name}/model with transformers",
    ]


def test_eval_of_a_run(
    addition: tuple[Path, str], here: Path, inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = addition
    # In a fresh process as the run was, with as many threads: sums depend on their number in the last digit.
    found = json.loads(
        complete(here, ["eval", "addition", "--json", "--problems", "6", "--samples", "2", "--seed", "5"])
    )
    assert (found["n"], found["seed"], found["samples"], found["task"]) == (6, 5, 2, "addition")
    for kind in ("greedy", "sampled"):
        assert 0 <= found[kind]["low"] <= found[kind]["accuracy"] <= found[kind]["high"] <= 1
    after = json.loads((run / "eval.json").read_text())["after"]
    assert {name: found[name] for name in after} == after  # the same numbers as the run's own evaluation
    assert main(["eval", "addition", "--samples", "0", "--problems", "6"]) == 0
    out = capsys.readouterr().out
    assert "greedy   accuracy" in out
    assert "sampled" not in out


# --- repeat --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def whole(here: Path) -> Path:
    """Six steps without a stop, in a fresh process."""
    complete(here, words("whole"), cold=True)
    return here / "whole"


def test_same_seed_same_run(whole: Path, here: Path) -> None:
    complete(here, words("again"))  # with another hash seed: the first started Python itself
    assert untimed(here / "again") == untimed(whole)
    assert weights(here / "again") == weights(whole)
    assert all(record["grad_norm"] > 0 for record in metrics(whole))  # there was something to repeat


def test_evaluations_while_a_run_goes_on_change_nothing(whole: Path, here: Path) -> None:
    flags = ["--eval-steps", "4", "--eval-problems", "5", "--eval-samples", "3", "--eval-steps-samples", "2"]
    complete(here, words("evaluated", *flags, "--eval-temperatures", "0.6", "1"))
    run = here / "evaluated"
    assert untimed(run) == untimed(whole) and weights(run) == weights(whole)
    records = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [0, 4, 6]
    for record in records:
        n = 3 if record["step"] == 6 else 2
        assert [(r["temperature"], r["samples"]) for r in record["results"]] == [(0.0, 1), (0.6, n), (1.0, n)]
        assert all(len(r["correct"]) == 5 and 0 <= r["accuracy"] <= 1 for r in record["results"])
    assert records[0]["results"] != records[1]["results"]
    other = ["--eval-task", "addition:?max=9", "--eval-task-length", "2"]  # another verifier, another length
    complete(here, words("evaluated-twice", *flags, "--eval-temperatures", "0.6", "1", *other))
    run = here / "evaluated-twice"
    assert untimed(run) == untimed(whole) and weights(run) == weights(whole)
    twice = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert [{name: record[name] for name in record if name != "other"} for record in twice] == records
    for record, of_run in zip(twice, records, strict=True):
        assert record["other"]["n"] == 5
        for result, own in zip(record["other"]["results"], of_run["results"], strict=True):
            assert list(result) == list(own) and (result["samples"], len(result["correct"])) == (own["samples"], 5)
            assert result["mean_length"] <= 2 and result != own


def test_another_seed_another_run(whole: Path, here: Path, inside: Path) -> None:
    assert main(words("seed-1", "--seed", "1")) == 0
    assert untimed(here / "seed-1") != untimed(whole)
    assert weights(here / "seed-1") != weights(whole)


# --- stop and go on ------------------------------------------------------------------------------------------------


def wait_in_step_3(here: Path, output: str) -> tuple[Running, Path]:
    """A run whose verifier waits in step 3 for as long as the gate exists."""
    gate = here / f"{output}.gate"
    gate.touch()
    variables = {"OWN_GATE": str(gate), "OWN_METRICS": str(here / output / "metrics.jsonl")}
    run = Running(here, words(output), variables)
    run.wait_for(gate.with_suffix(".waiting").exists)
    return run, gate


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_and_resume(number: signal.Signals, whole: Path, here: Path, inside: Path) -> None:
    name = number.name
    run, gate = wait_in_step_3(here, name)
    run.process.send_signal(number)
    run.wait_for(lambda: "\nstopping after this step with a checkpoint" in run.out)
    gate.unlink()
    assert run.finish() == 128 + number
    assert run.err == ""
    assert steps(here / name) == [1, 2, 3]
    assert RunFolder(here / name).latest_checkpoint() == here / name / "checkpoint-3"
    assert not (here / name / "model").exists()
    message, _, again = run.out.splitlines()[-1].partition("; go on with: ")
    assert message == "stopped at step 3 with a checkpoint"
    assert shlex.split(again) == ["covgrpo", *words(name), "--resume"]
    if number == signal.SIGTERM:  # once in a fresh process, once in this one
        complete(here, shlex.split(again)[1:])
    else:
        assert main(shlex.split(again)[1:]) == 0
    assert untimed(here / name) == untimed(whole)
    assert weights(here / name) == weights(whole)
    samples = [json.loads(line)["step"] for line in (here / name / "samples.jsonl").read_text().splitlines()]
    assert samples == [step for step in range(1, 7) for _ in range(4)]


def test_second_interrupt_stops_at_once(here: Path) -> None:
    run, gate = wait_in_step_3(here, "twice")
    run.process.send_signal(signal.SIGINT)
    run.wait_for(lambda: "with a checkpoint; once more to stop at once without one\n" in run.out)
    run.process.send_signal(signal.SIGINT)
    assert run.finish(20) == 130  # the verifier would wait for 60 s
    assert run.err == "covgrpo: interrupted\n"
    assert gate.exists()
    assert steps(here / "twice") == [1, 2]
    assert RunFolder(here / "twice").latest_checkpoint() == here / "twice" / "checkpoint-2"


def test_signal_after_the_last_micro_batch_is_in_time(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    show = Display.step

    def stop(self: Display, record: dict[str, Any]) -> None:
        show(self, record)
        if record["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Display, "step", stop)
    assert main(words("late")) == 143
    assert steps(inside / "late") == [1, 2, 3]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_full_disk_at_a_checkpoint(
    whole: Path, inside: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def fill(content: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        if "checkpoint-4" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(content, path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fill)
        assert main(words("full")) == 2
    message = "covgrpo: no space left for the run folder full; make space and go on with --resume.\n"
    assert capsys.readouterr().err == message
    assert (inside / "full" / "checkpoint-4").exists()  # incomplete, and passed over
    assert main(words("full", "--resume")) == 0
    assert "resuming full from step 2\n" in capsys.readouterr().out
    assert untimed(inside / "full") == untimed(whole)
    assert weights(inside / "full") == weights(whole)


def test_resume_at_the_end(
    whole: Path, here: Path, inside: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(whole, here / "end"))
    shutil.rmtree(run / "model")  # as if stopped between the last checkpoint and the end
    assert main(words("end", "--resume")) == 0
    assert untimed(run) == untimed(whole)
    assert weights(run) == weights(whole)
    # more steps than before
    assert main(words("end", "--resume", "--steps", "8")) == 0
    assert steps(run) == list(range(1, 9))
    assert json.loads((run / "resume-2.json").read_text())["config"]["options"]["steps"] == 8
    # a last line torn by a crash, and records after the last checkpoint
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9}\n{"step"')
    assert main(words("end", "--resume", "--steps", "8")) == 0
    assert steps(run) == list(range(1, 9))
    # other settings
    capsys.readouterr()
    before = sorted(path.name for path in run.iterdir())
    assert main(words("end", "--resume", "--learning-rate", "2e-3")) == 2
    message = (
        "covgrpo: cannot resume end: its options.learning_rate is 0.001 and now 0.002; "
        "choose another --output or the same settings\n"
    )
    assert capsys.readouterr().err == message
    assert sorted(path.name for path in run.iterdir()) == before


def test_logs_do_not_pile_up_in_memory_and_in_checkpoints(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers keeps the logs of all steps; the run's records have them already."""
    monkeypatch.setattr(recorder, "_LOGS_HELD", 2)
    assert main(words("brief", "--steps", "4")) == 0
    state = json.loads((inside / "brief" / "checkpoint-4" / "trainer_state.json").read_text())
    assert [log["step"] for log in state["log_history"]] == [3, 4]
    assert steps(inside / "brief") == [1, 2, 3, 4]


def test_the_first_steps_of_a_schedule(here: Path, inside: Path) -> None:
    """A run of a schedule's first steps is the same as the start of the whole, and can go on to its end."""
    flags = ["--lr-scheduler-type", "cosine_with_min_lr", "--trl", "lr_scheduler_kwargs={min_lr_rate: 0.1}"]
    flags += ["--warmup-steps", "2"]
    complete(here, words("schedule", *flags))
    assert main(words("part", *flags, "--schedule-steps", "6", "--steps", "3")) == 0
    part = inside / "part"
    assert steps(part) == [1, 2, 3] and (part / "model").exists()
    assert untimed(part) == untimed(here / "schedule")[:3]
    assert RunFolder(part).latest_checkpoint() == part / "checkpoint-3"
    complete(here, words("part", *flags, "--schedule-steps", "6", "--resume"))
    assert untimed(part) == untimed(here / "schedule")
    assert weights(part) == weights(here / "schedule")
    # A half cosine from the rate to a tenth of it over the four steps after the warm-up; step 1 is taken at rate 0.
    rates = [record["learning_rate"] for record in metrics(part)]
    cosine = [1e-3 * (0.1 + 0.9 * (1 + math.cos(math.pi * i / 4)) / 2) for i in range(4)]
    assert rates == pytest.approx([0, 5e-4, *cosine])


def test_long_prompts_are_left_out(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prompts 10 to 19 of the task have one digit more than 0 to 9, and one token."""
    tokenizer = AutoTokenizer.from_pretrained("tiny")
    prompts = [PromptFormat().messages(problem) for problem in load_task("own.tasks:letters").problems("train", 20, 0)]
    lengths = [len(encode_prompt(tokenizer, prompt)) for prompt in prompts]
    assert sorted(set(lengths)) == [lengths[0], lengths[0] + 1]
    flags = ["--max-prompt-length", str(lengths[0]), "--samples-per-step", "8"]
    assert main(words("short", *flags)) == 0
    assert f"10 of 20 training problems left out: prompt above {lengths[0]}" in capsys.readouterr().out
    samples = [json.loads(line) for line in (inside / "short" / "samples.jsonl").read_text().splitlines()]
    asked = {sample["prompt"].rpartition(" ")[2] for sample in samples}
    assert len(asked) > 3 and all(len(number) == 1 for number in asked)


@pytest.mark.parametrize("path", ["--fast-path", "--no-fast-path"])
def test_two_temperatures(inside: Path, path: str) -> None:
    """Sampled almost greedily, scored at temperature 1: a group's completions are one, the loss's entropy is not 0."""
    flags = [path, "--temperature", "0.001", "--steps", "2"]
    assert main(words(f"cold{path}", *flags, "--loss-temperature", "1")) == 0
    assert main(words(f"colder{path}", *flags)) == 0
    cold, colder = metrics(inside / f"cold{path}"), metrics(inside / f"colder{path}")
    for record in (*cold, *colder):
        assert record["frac_reward_zero_std"] == 1
    assert min(record["entropy"] for record in cold) > 1
    assert max(record["entropy"] for record in colder) < 0.1
    trainer = json.loads((inside / f"cold{path}" / "config.json").read_text())["trainer"]
    assert (trainer["temperature"], trainer["generation_kwargs"]) == (1, {"temperature": 0.001})


def test_lora_adapters_are_trained_saved_and_evaluated(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--lora-r", "4", "--lora-alpha", "8", "--steps", "2", "--prompts-per-step", "2", "--num-generations", "4"]
    task = ["--task", "addition", "--model", "tiny", "--max-completion-length", "4"]
    assert main(["train", *task, *flags, "--output", "lora"]) == 0
    adapter = json.loads((inside / "lora" / "model" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"]) == (4, 8)
    assert not (inside / "lora" / "model" / "model.safetensors").exists()
    capsys.readouterr()
    assert main(["eval", "lora", "--problems", "6", "--samples", "0"]) == 0
    assert "greedy   accuracy" in capsys.readouterr().out


def test_a_lora_run_resumed_at_its_end_keeps_its_adapters(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Killed behind its last checkpoint, or finished; what is measured "after" is the model that is saved."""
    lora = words("lora-end", "--lora-r", "4", "--steps", "2", "--learning-rate", "5e-2")
    assert main(lora) == 0
    path = inside / "lora-end" / "model" / "adapter_model.safetensors"
    trained = path.read_bytes()
    assert any(values.any() for name, values in load_file(path).items() if "lora_B" in name)
    assert main([*lora, "--resume"]) == 0
    assert path.read_bytes() == trained
    shutil.rmtree(path.parent)
    assert main([*lora, "--resume"]) == 0
    assert path.read_bytes() == trained
    # The adapter's folder as the model of another run: refused where its base would take its place.
    for more in (["--lora-r", "4"], ["--beta", "0.1"]):
        capsys.readouterr()
        assert main(words("second", "--model", "lora-end/model", *more)) == 2
        assert "model lora-end/model is an adapter: its base model alone" in capsys.readouterr().err
    assert main(words("second", "--model", "lora-end/model", "--steps", "1")) == 0


def test_a_task_flag_drops_the_files_task_params(inside: Path) -> None:
    """They belong to the file's own task."""
    Path("params.yaml").write_text("task: addition\ntask_params: {max: 3}\n")
    given = ["--model", "tiny", "--steps", "1", "--max-completion-length", "4", "--prompts-per-step", "2"]
    given += ["--num-generations", "2", "--config", "params.yaml"]
    for name, more, task in (("p1", [], "max=3"), ("p2", ["--task", "addition:?max=7"], "max=7")):
        assert main(["train", *given, *more, "--output", name]) == 0
        assert json.loads(Path(name, "config.json").read_text())["task"] == f"addition:?{task}"
