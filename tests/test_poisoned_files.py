"""Files from outside that would run code or lead a run to write elsewhere: refused, or read without doing so."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from cli_cases import command, refused
from report_cases import make_run
from study_cases import STUDY, made_study
from tiny import tiny_model, tiny_tokenizer

from covgrpo.cli import main
from covgrpo.runs.options import TrainOptions
from covgrpo.studies.records import record_path
from covgrpo.studies.schedule import work_folder

PARTS = (
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "training_args.bin",
    "covgrpo_state.json",
)


class Bomb:
    """Unpickling it makes the file ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def hit(tmp_path: Path) -> Path:
    """The file that a bomb makes; none has gone off by the end of the test."""
    path = tmp_path / "HIT"
    yield path
    assert not path.exists()


def test_the_bomb_would_go_off(tmp_path: Path) -> None:
    torch.save({"state": Bomb(tmp_path / "HIT")}, tmp_path / "f.pt")
    torch.load(tmp_path / "f.pt", weights_only=False)
    assert (tmp_path / "HIT").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_weights_as_a_pickle_are_refused(work: Path, hit: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    shutil.copytree(work.parent / "tiny", work / "m")
    (work / "m" / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Bomb(hit)}, work / "m" / name)
    for words in (command(model="./m"), ["eval", "./m", "--task", "addition"]):
        assert f"only as a pickle ({name})" in refused(capsys, words)


def test_a_pickle_beside_the_weights_is_not_read(work: Path, hit: Path) -> None:
    shutil.copytree(work.parent / "tiny", work / "m")
    torch.save({"lm_head.weight": Bomb(hit)}, work / "m" / "pytorch_model.bin")
    assert main(["eval", "./m", "--task", "addition", "--problems", "2", "--samples", "0"]) == 0


def test_an_adapter_as_a_pickle_is_refused(work: Path, hit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "m").mkdir()
    (work / "m" / "adapter_config.json").write_text('{"base_model_name_or_path": "../tiny", "peft_type": "LORA"}')
    torch.save({"base_model.model.lm_head.weight": Bomb(hit)}, work / "m" / "adapter_model.bin")
    assert "only as a pickle (adapter_model.bin)" in refused(capsys, command(model="./m"))


@pytest.mark.parametrize("part", ["config.json", "tokenizer_config.json"])
def test_a_model_that_brings_code_is_refused(
    work: Path, hit: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    shutil.copytree(work.parent / "tiny", work / "m")
    config = json.loads((work / "m" / part).read_text())
    if part == "config.json":
        config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    else:
        config |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    (work / "m" / part).write_text(json.dumps(config))
    (work / "m" / "own.py").write_text(f"open({str(hit)!r}, 'w')\nclass Own: pass\n")
    code = main(["eval", "./m", "--task", "addition", "--problems", "2", "--samples", "0"])
    error = capsys.readouterr().err
    assert code == 2 and error.startswith("covgrpo: cannot load model") and error.count("\n") == 1


def test_code_of_models_is_off_by_default() -> None:
    assert TrainOptions().trust_remote_code is False


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step with its checkpoint, and the model."""
    folder, before = tmp_path_factory.mktemp("stopped"), Path.cwd()
    tiny_model().save_pretrained(folder / "tiny")
    tiny_tokenizer().save_pretrained(folder / "tiny")
    (folder / "here").mkdir()
    os.chdir(folder / "here")
    try:
        assert main(command("--save-steps", "1")) == 0
    finally:
        os.chdir(before)
    return folder / "here"


@pytest.mark.parametrize("part", PARTS)
def test_a_poisoned_checkpoint_runs_nothing(
    stopped: Path, work: Path, hit: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    shutil.copytree(stopped / "out", work / "out")
    shutil.rmtree(work / "out" / "model")
    poisoned = work / "out" / "checkpoint-1" / part
    torch.save({"state": Bomb(hit)}, poisoned)
    _resume(capsys)
    if part.endswith((".pt", ".pth", ".bin")) and poisoned.exists():
        poisoned.write_bytes(pickle.dumps(Bomb(hit)))
        _resume(capsys)


def _resume(capsys: pytest.CaptureFixture[str]) -> None:
    """It goes on, from the checkpoint or anew, or says in one sentence why not."""
    capsys.readouterr()
    code = main(command("--save-steps", "1", "--steps", "2", "--resume"))
    error = capsys.readouterr().err
    assert code in (0, 2) and "Traceback" not in error
    assert code == 0 or (error.startswith("covgrpo: ") and error.count("\n") == 1)


# --- where a run writes ---


def test_names_in_a_study_do_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    names = ("../../x", "/etc/x", "..", "a/../../x", "\\..\\x", ".")
    text = STUDY.replace("{easy: {}, hard: {num_iterations: 4}}", json.dumps({name: {} for name in names}))
    text = text.replace("grpo: {}, ", 'grpo: {}, "../../grpo": {method: grpo}, ').replace("[hard]", "['..']")
    study = made_study(tmp_path, text.replace("  ", " "))
    folder = tmp_path / "made"
    assert len(study.runs) == 3 * len(names) * 3 + 2 * len(names) - 3 * len(names) + 3 * len(names)
    for spec in study.runs:
        for path in (record_path(folder, spec), work_folder(folder, spec), folder / "pages" / f"{spec.regime_id}.html"):
            assert path.resolve().is_relative_to(folder) and path.resolve().parent in (
                *(folder / part for part in ("records", "work", "pages")),
            )


@pytest.mark.parametrize("task", ["jsonl:../../x.jsonl", "jsonl:/etc/x", "own.tasks:../../x", "..:..", "hub:../../x"])
@pytest.mark.parametrize("weighting", [None, "a.b:C", "../../x", "a:../../x"])
def test_the_default_folder_of_a_run_lies_below_runs(task: str, weighting: str | None) -> None:
    folder = Path(TrainOptions(task=task, weighting=weighting, method="../../x").run_folder())
    assert folder.parent == Path("runs") and ".." not in folder.parts


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl", "README.md", "config.json", "model/config.json"])
def test_a_link_in_a_run_is_not_written_through(
    stopped: Path, work: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    shutil.copytree(stopped / "out", work / "out")
    outside = work / "outside"
    shutil.move(work / "out" / name, outside)
    (work / "out" / name).symlink_to(outside)
    before = outside.read_bytes()
    error = refused(capsys, command("--save-steps", "1", "--steps", "2", "--resume"))
    assert f"{name} is a link to a file" in error and outside.read_bytes() == before


def test_a_report_is_not_written_through_a_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, outside = make_run(tmp_path / "run", steps=2), tmp_path / "outside"
    outside.write_text("mine")
    (run / "report.html").symlink_to(outside)
    assert "report.html is a link" in refused(capsys, ["report", str(run)])
    assert outside.read_text() == "mine"
    assert main(["report", str(run), "--output", str(tmp_path / "r.html")]) == 0
