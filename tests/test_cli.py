"""The command line as a user meets it: folders and disks that do not serve, listings, help. See bad_inputs.py too."""

import dataclasses
import errno
import importlib.abc
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_cases import command, refused
from trl import GRPOConfig

import covgrpo
import covgrpo.runs.record.folder
from covgrpo.cli import main
from covgrpo.runs.options import LOSS_TYPES, TrainOptions
from covgrpo.runs.record.folder import RunFolder
from covgrpo.yaml_text import parse_yaml

# --- what train cannot use --------------------------------------------------------------------------------------------


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


# --- what eval cannot use -------------------------------------------------------------------------------


def test_eval_of_what_has_no_model(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RunFolder.create("out", {"options": {"task": "addition"}})
    assert "run out has no model yet" in refused(capsys, ["eval", "out"])
    Path("out/config.json").write_text("{}")
    assert "out/config.json is neither a run's nor beside a model's tokenizer" in refused(capsys, ["eval", "out"])


def test_eval_takes_a_model_whose_tokenizer_is_of_the_older_form(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vocab.json and merges.txt, without tokenizer.json: no run."""
    Path("old").mkdir()
    for name in ("config.json", "vocab.json"):
        Path("old", name).write_text("{}")
    given = []
    monkeypatch.setattr("covgrpo.cli.evaluate._evaluate", lambda model, options, args: given.append(model) or {})
    monkeypatch.setattr("covgrpo.cli.evaluate._print", lambda *_: None)
    assert main(["eval", "old", "--task", "addition"]) == 0
    assert given == ["old"]


# --- listings and help ---------------------------------------------------------------------------------------------


def test_version_is_light() -> None:
    code = (
        "import sys; from covgrpo.cli import main\ntry: main(['--version'])\nfinally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == f"covgrpo {covgrpo.__version__}\n"


def run_covgrpo(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    code = "import sys; from covgrpo.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, *words], stderr=subprocess.PIPE, text=True, timeout=120, **options
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", [["models"], ["--help"]])
def test_output_onto_a_full_disk(words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = run_covgrpo(*words, stdout=full)
    assert (done.returncode, done.stderr) == (2, "covgrpo: no space left for the output\n")


@pytest.mark.parametrize("words", [["models"], ["train", "--help"]])
def test_output_that_nobody_reads(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run_covgrpo(*words, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_output_that_is_closed() -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -m covgrpo models >&-', sys.executable], stderr=subprocess.PIPE, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("module", ["covgrpo.cli.train", "covgrpo.report", "covgrpo.studies"])
def test_an_interrupt_during_imports(
    module: str, work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, *rest: object) -> None:
            if name == module:
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, module, raising=False)
    package, _, child = module.rpartition(".")
    monkeypatch.delattr(sys.modules[package], child, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    words = {"covgrpo.studies": ["compare", "x.yaml"], "covgrpo.report": ["report", "x"]}
    assert main(words.get(module, ["models"])) == 130
    assert capsys.readouterr().err == "covgrpo: interrupted\n"


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
    assert main(["train", "--help"]) == 0
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
