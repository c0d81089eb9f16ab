"""The command line as a user meets it: bad input, listings and help."""

import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_cases import command
from trl import GRPOConfig

import covgrpo
import covgrpo.runs.record.folder
from covgrpo.cli import main
from covgrpo.runs.options import LOSS_TYPES, TrainOptions
from covgrpo.runs.record.folder import RunFolder
from covgrpo.yaml_text import parse_yaml


def refused(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """Exit code 2 and one line on stderr; returns it without the program's name."""
    code = main(argv)
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("covgrpo: ")
    assert error.endswith("\n")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    return error.removeprefix("covgrpo: ").rstrip("\n")


# --- bad input of train --------------------------------------------------------------------------------------------

BAD_OPTIONS = {
    "task kind": (["--task", "adition"], "Task 'adition': unknown kind 'adition'. Did you mean 'addition'?"),
    "no task": (["--task", ""], "no task given: pass --task"),
    "reasoning_gym task": (["--task", "reasoning_gym:basic_aritmetic"], "'basic_aritmetic'. Did you mean 'basic_arit"),
    "task parameter": (["--task", "addition?mox=3"], "has no parameter 'mox'. Did you mean 'max'?"),
    "task parameter flag": (["--task-params", "mox=3"], "has no parameter 'mox'. Did you mean 'max'?"),
    "task parameter type": (["--task-params", "max=many"], "parameter 'max' must be int, not 'many'"),
    "pair without =": (["--task-params", "max"], "--task-params takes KEY=VALUE, not 'max'"),
    "own task module": (["--task", "no.such:task"], "Task 'no.such:task' cannot be imported"),
    "own task parameter": (["--task", "own.tasks:letters?level=3"], "does not take {'level': 3}"),
    "too few problems": (["--num-examples", "100"], "has 65 training problems, too few for num_examples"),
    "num_examples": (["--num-examples", "-1"], "num_examples must be at least 0, not -1"),
    "answer format": (["--answer-format", "box"], "answer_format 'box' is unknown. Did you mean 'boxed'?"),
    "model folder": (["--model", "./nothing"], "model folder './nothing' does not exist"),
    "dtype": (["--dtype", "float3"], "model dtype 'float3' is not one of float32, "),
    "context": (["--system-prompt", "x" * 300], "does not fit the model's context of 256 tokens"),
    "completion over context": (["--max-completion-length", "256"], "max_completion_length 256 it does not fit"),
    "one generation": (["--num-generations", "1"], "num_generations is 1; it must be at least 2"),
    "no completion": (["--max-completion-length", "0"], "max_completion_length is 0; it must be at least 1"),
    "micro batch": (["--micro-batch-size", "3"], "micro_batch_size is 3; it must divide the 8 completions"),
    "nan": (["--learning-rate", "nan"], "learning_rate is nan; it must be finite"),
    "temperature": (["--temperature", "0"], "temperature is 0.0; it must be above 0"),
    "schedule_steps": (["--steps", "3", "--schedule-steps", "2"], "steps is 3; it must be at most schedule_steps, 2"),
    "loss_temperature": (["--loss-temperature", "0"], "loss_temperature is 0.0; it must be above 0"),
    "three temperatures": (
        ["--loss-temperature", "0.5", "--trl", "generation_kwargs={temperature: 2}"],
        "generation_kwargs must be a mapping without a temperature beside loss_temperature",
    ),
    "max_prompt_length": (
        ["--max-prompt-length", "2"],
        "max_prompt_length is 2, and the shortest training prompt has ",
    ),
    "beta": (["--beta", "-1"], "beta is -1.0; it must be at least 0"),
    "adam_beta2": (["--adam-beta2", "2"], "adam_beta2 is 2.0; it must be at least 0 and below 1"),
    "seed": (["--seed", "4294967296"], "seed is 4294967296; it must be below 2**32"),
    "no reward": (["--correctness-weight", "0"], "correctness_weight and format_weight are both 0"),
    "method": (["--method", "gausian"], "unknown method 'gausian'; known: grpo, gaussian, "),
    "near method": (["--method", "gausian"], "Did you mean 'gaussian'?"),
    "weighting": (["--weighting", "gausian"], "unknown weighting 'gausian'; known: gaussian, gaussian_through, "),
    "near weighting": (["--weighting", "gausian"], "or module:Class. Did you mean 'gaussian'?"),
    "own weighting": (["--weighting", "no.such:Class"], "weighting 'no.such:Class' cannot be imported"),
    "weighting_kwargs": (["--weighting-kwargs", "x=1"], "weighting 'gaussian' does not take {'x': 1}"),
    "weighting_scope": (["--weighting-scope", "bach"], "unknown weighting_scope 'bach'; known: group, batch"),
    "scheduler": (["--lr-scheduler-type", "liner"], "lr_scheduler_type 'liner' is unknown; did you mean 'linear'?"),
    "loss": (["--loss-type", "dopo"], "loss_type 'dopo' is unknown; did you mean 'dapo'?"),
    "logger": (["--report-to", "nosuch"], "nosuch is not supported"),
    "trl key": (["--trl", "top_p_=1"], "GRPOConfig has no option 'top_p_'. Did you mean 'top_p'?"),
    "trl type": (["--trl", "top_k=many"], "trl: option 'top_k' must be int, not 'many'"),
    "trl value": (["--trl", "generation_batch_size=7"], "generation_batch_size (7) must be divisible"),
    "trl key of ours": (["--trl", "max_steps=2"], "'max_steps' follows from the option 'steps'"),
    "trl without vllm": (["--trl", "use_vllm=true"], "vLLM is not available"),
    "resume without a run": (["--resume"], "out has no config.json to resume from; leave out --resume"),
    "output below a file": (["--output", "../tiny/config.json/run"], "../tiny/config.json/run: not a directory"),
    "output in /proc": (["--output", "/proc/run"], "cannot use the run folder /proc/run"),
    "no config": (["--config", "no.yaml"], "cannot read config no.yaml: no such file or directory"),
    "config is a folder": (["--config", "."], "cannot read config .: is a directory"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options(name: str, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = BAD_OPTIONS[name]
    assert message in refused(capsys, command(*arguments))
    assert list(work.iterdir()) == []  # no run folder is left


BAD_LINES = {
    "broken": ('{"problem": "a", "answer": "b"}\n{oops\n', "p.jsonl, line 2: not valid JSON"),
    "field": ('\n{"problem": "a"}\n', "p.jsonl, line 2: field 'answer' is missing"),
    "list": ("[1]\n", "p.jsonl, line 1: a JSON object is expected, not list"),
    "empty": ("", "p.jsonl: the file holds no problem"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_bad_problem_files(name: str, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, message = BAD_LINES[name]
    Path("p.jsonl").write_text(text)
    assert message in refused(capsys, command(task="jsonl:p.jsonl"))
    assert [path.name for path in work.iterdir()] == ["p.jsonl"]


def test_missing_problem_file(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Cannot read 'p.jsonl': No such file" in refused(capsys, command(task="jsonl:p.jsonl"))


BAD_CONFIGS = {
    "key": ("learnig_rate: 1\n", "c.yaml: unknown option 'learnig_rate'. Did you mean 'learning_rate'?"),
    "broken": ("task: [a\nb: c\n", "config c.yaml is not valid YAML: line 2: expected ',' or ']', but got ':'."),
    "type": ("steps: many\n", "c.yaml: option 'steps' must be int, not 'many'"),
    "bool": ("steps: true\n", "c.yaml: option 'steps' must be int, not True"),
    "mapping": ("weighting_kwargs: 3\n", "c.yaml: option 'weighting_kwargs' must be dict, not 3"),
    "list": ("- a\n", "config c.yaml must be a mapping of options, not list"),
    "empty": ("", "config c.yaml must be a mapping of options, not NoneType"),
    "binary": ("\0", "config c.yaml is not valid YAML"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_bad_configs(name: str, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, message = BAD_CONFIGS[name]
    Path("c.yaml").write_text(text)
    assert message in refused(capsys, command("--config", "c.yaml"))
    assert [path.name for path in work.iterdir()] == ["c.yaml"]


def copy_model(folder: str) -> Path:
    return Path(shutil.copytree("../tiny", folder))


def test_bad_model_folders(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy_model("light") / "model.safetensors").unlink()
    assert "model folder light has no weights" in refused(capsys, command(model="light"))
    whole = copy_model("torn") / "model.safetensors"
    whole.write_bytes(whole.read_bytes()[:5000])
    assert "cannot load model torn" in refused(capsys, command(model="torn"))
    (copy_model("silent") / "chat_template.jinja").unlink()
    assert "chat template does not take the prompt" in refused(capsys, command(model="silent"))
    template = copy_model("strict") / "chat_template.jinja"
    template.write_text("{{ raise_exception('System role not supported') }}")
    message = "the model's chat template does not take the prompt: System role not supported."
    assert refused(capsys, command(model="strict")) == message
    assert refused(capsys, ["eval", "strict", "--task", "addition"]) == message
    assert not Path("out").exists()


def test_output_that_is_taken(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").write_text("mine")
    assert refused(capsys, command()) == "out is a file; choose another --output"
    assert Path("out").read_text() == "mine"
    Path("out").unlink()
    Path("out").mkdir()
    Path("out/config.json").write_text("{}")
    assert refused(capsys, command()) == "out holds another run; choose another --output or pass --resume"
    assert Path("out/config.json").read_text() == "{}"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_output_without_permission(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work.chmod(0o500)
    assert "out: permission denied" in refused(capsys, command())
    work.chmod(0o700)


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_at_the_start(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(covgrpo.runs.record.folder, "_probe", no_space)
    message = "cannot use the run folder out (out: no space left on device); choose another --output"
    assert refused(capsys, command()) == message
    assert not Path("out").exists()


@pytest.mark.slow
def test_full_disk_later_keeps_what_there_is(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    append = RunFolder._append

    def fill(self: RunFolder, path: Path, records: object) -> None:
        with covgrpo.runs.record.folder._named_errors(self.path):
            no_space() if len(self.read_metrics()) == 2 else append(self, path, records)

    monkeypatch.setattr(RunFolder, "_append", fill)
    assert "no space left on device" in refused(capsys, command("--steps", "5", "--samples-per-step", "0"))
    assert [record["step"] for record in RunFolder(Path("out")).read_metrics()] == [1, 2]


# --- bad input of the other commands -------------------------------------------------------------------------------

BAD_EVALS = {
    "no model": ([], "no model given"),
    "two models": (["../tiny", "--model", "b"], "two models given: '../tiny' and 'b'"),
    "no task": (["../tiny"], "no task given"),
    "samples": (["../tiny", "--task", "addition", "--samples", "-1"], "--samples is -1; it must be at least 0"),
    "problems": (["../tiny", "--task", "addition", "--problems", "0"], "--problems is 0; it must be at least 1"),
    "no folder": (["./nothing", "--task", "addition"], "model folder './nothing' does not exist"),
    "examples": (["../tiny", "--task", "addition", "--num-examples", "99"], "num_examples is 99, but 65 can be used"),
    "format": (["../tiny", "--task", "addition", "--answer-format", "x"], "answer_format 'x' is unknown"),
    "temperature": (["../tiny", "--task", "addition", "--temperature", "0"], "temperature is 0.0; it must be above 0"),
    "context": (["../tiny", "--task", "addition", "--system-prompt", "x" * 300], "does not fit the model's context"),
}


@pytest.mark.parametrize("name", BAD_EVALS)
def test_bad_eval(name: str, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = BAD_EVALS[name]
    assert message in refused(capsys, ["eval", *arguments])


def test_eval_of_what_has_no_model(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RunFolder.create("out", {"options": {"task": "addition"}})
    assert "run out has no model yet" in refused(capsys, ["eval", "out"])
    Path("out/config.json").write_text("{}")
    assert "out/config.json is neither a run's nor beside a model's tokenizer" in refused(capsys, ["eval", "out"])


def test_unknown_task_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, ["tasks", "zzz"]) == "no task's name holds 'zzz'."


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["train", "--stepz", "3"], "unrecognized arguments: --stepz 3"),
        (["train", "--step", "3"], "unrecognized arguments: --step 3"),  # no abbreviations
        (["train", "--steps", "many"], "argument --steps: invalid int value: 'many'"),
        (["eval", "m", "--split", "test"], "argument --split: invalid choice: 'test'"),
    ],
)
def test_argparse_errors(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


# --- listings and help ---------------------------------------------------------------------------------------------


def test_version_is_light() -> None:
    code = (
        "import sys; from covgrpo.cli import main\ntry: main(['--version'])\nfinally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == f"covgrpo {covgrpo.__version__}\n"


def test_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("addition:")
    assert "\njsonl:PATH" in out
    assert "\nreasoning_gym:basic_arithmetic " in out
    assert main(["tasks", "basic_arith"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("reasoning_gym:basic_arithmetic ")
    assert "    max_terms = 6" in lines


def test_tasks_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "--json"]) == 0
    tasks = json.loads(capsys.readouterr().out)
    assert len(tasks) > 100
    assert {"name", "description", "parameters"} == set(tasks[0])
    assert tasks[0]["parameters"] == {"min": 1, "max": 9, "eval_fraction": 0.2}


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    assert "smollm2-135m " in capsys.readouterr().out
    assert main(["models", "--json"]) == 0
    assert "smollm2-135m" in [model["name"] for model in json.loads(capsys.readouterr().out)]


def test_train_help_documents_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--help"])
    assert exit_.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(TrainOptions):
        flag = "--" + field.name.replace("_", "-")
        assert re.search(rf"{flag}[ ,]", text), flag
        # argparse may break a line after a hyphen
        assert field.metadata["help"].replace(" ", "") in text.replace(" ", ""), flag


def test_loss_types_are_those_of_trl() -> None:
    text = next(f for f in dataclasses.fields(GRPOConfig) if f.name == "loss_type").metadata["help"]
    supported = text[text.index("Supported values are") :].split(".")[0]
    assert set(re.findall(r"'(\w+)'", supported)) == set(LOSS_TYPES)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-5", 1e-5), ("-2.5E+3", -2500.0), (".5e1", 5.0), ("1e", "1e"), ("e5", "e5"), ("none", "none"), ("3", 3)],
)
def test_yaml_numbers(text: str, value: object) -> None:
    assert parse_yaml(text) == value
    assert parse_yaml(f"a: {text}") == {"a": value}
