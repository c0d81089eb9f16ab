"""Run folders: what is written, what is refused, and going on after a crash. And the environment record."""

import errno
import getpass
import json
import os
import platform
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import covgrpo
import covgrpo.runs.record.environment as environment
from covgrpo.errors import UserError
from covgrpo.runs.record import RunFolder, describe_environment, differences

CONFIG = {"model": "smollm2-135m", "lr": 1e-6, "trainer": {"seed": 1, "betas": (0.9, 0.99)}, "output": "a"}


def strict(text: str) -> object:
    """Parses JSON as other languages do: no NaN or Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


def test_create_writes_config_and_environment(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "deep" / "run", CONFIG)
    assert strict(run.config.read_text())["trainer"] == {"seed": 1, "betas": [0.9, 0.99]}
    assert strict(run.environment.read_text())["versions"]["torch"] == torch.__version__
    assert sorted(p.name for p in run.path.iterdir()) == ["config.json", "environment.json"]
    assert run.model == run.path / "model"


def test_create_takes_an_empty_folder(tmp_path: Path) -> None:
    assert RunFolder.create(tmp_path, CONFIG).config.exists()


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_create_refuses_another_run(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}\n")
    with pytest.raises(UserError, match=r"holds another run; choose another --output or pass --resume$"):
        RunFolder.create(tmp_path, CONFIG)


def test_create_refuses_other_files_and_a_file(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="with other files and no run"):
        RunFolder.create(tmp_path, CONFIG)
    with pytest.raises(UserError, match=r"thesis\.tex is a file"):
        RunFolder.create(tmp_path / "thesis.tex", CONFIG)
    with pytest.raises(UserError, match="not a directory"):
        RunFolder.create(tmp_path / "thesis.tex" / "run", CONFIG)


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOSPC, "no space left"), (errno.EACCES, "permission denied"), (errno.EROFS, "read-only file system")],
)
def test_create_names_the_folder_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    with pytest.raises(UserError, match=words) as caught:
        RunFolder.create(tmp_path / "run", CONFIG)
    assert str(tmp_path / "run") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_create_leaves_nothing_when_the_configuration_has_no_json_form(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="object"):
        RunFolder.create(tmp_path / "run", {"a": object()})
    assert not (tmp_path / "run").exists()


def test_resume_keeps_the_record_and_adds_one(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", CONFIG)
    before = run.config.read_bytes()
    run.append_metrics({"step": 1})
    for count in (1, 2):
        RunFolder.create(run.path, CONFIG | {"output": "b"}, resume=True)
        resumed = strict((run.path / f"resume-{count}.json").read_text())
        assert resumed["config"]["output"] == "b"
    assert run.config.read_bytes() == before
    assert run.read_metrics() == [{"step": 1}]


def test_resume_refuses_another_configuration(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", CONFIG)
    changed = CONFIG | {"trainer": {"seed": 2, "betas": (0.9, 0.99)}}
    with pytest.raises(UserError, match=r"its trainer\.seed is 1 and now 2;"):
        RunFolder.create(run.path, changed, resume=True)
    RunFolder.create(run.path, changed, resume=True, ignore={"trainer", "output"})


def test_resume_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json to resume from"):
        RunFolder.create(tmp_path / "none", CONFIG, resume=True)
    (tmp_path / "config.json").write_text('{"a":')
    with pytest.raises(UserError, match=r"cannot read .*config\.json"):
        RunFolder.create(tmp_path, CONFIG, resume=True)


def test_differences() -> None:
    assert differences(CONFIG, json.loads(json.dumps(CONFIG))) == []
    assert differences({"a": 1, "b": {"c": 2}}, {"b": {"c": 3}, "d": None}) == [
        ("a", 1, "(absent)"),
        ("b.c", 2, 3),
        ("d", "(absent)", None),
    ]
    assert differences({"a": 1}, {"a": True}) == [("a", 1, True)]
    assert differences({"a": 1}, {"a": 1.0}) == []
    assert differences({"a": {}}, {"a": {"b": 1}}) == [("a.b", "(absent)", 1)]
    assert differences({"a": {}}, {"a": {"b": 1}}, ignore={"a.b"}) == [], "an empty mapping is no value of its own"
    assert differences({"ab": 1, "a": {"b": 1}}, {"ab": 2, "a": {"b": 2}}, ignore={"a"}) == [("ab", 1, 2)]


def test_metrics_are_json_for_any_parser(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    record = {"step": np.int64(3), "loss": float("nan"), "x": [np.float32("inf"), torch.tensor(0.5)], "p": Path("a")}
    run.append_metrics(record)
    run.append_samples([{"step": 1, "text": "é\n\u2028"}, {"step": 2}])
    assert strict(run.metrics.read_text()) == {"step": 3, "loss": None, "x": [None, 0.5], "p": "a"}
    assert strict(run.samples.read_bytes().splitlines()[0].decode())["text"] == "é\n\u2028"
    with pytest.raises(TypeError, match="object"):
        run.append_samples([{"step": 3}, {"step": object()}])
    assert len(run.samples.read_bytes().splitlines()) == 2


def test_torn_last_line_is_left_out_and_mended_on_resume(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", CONFIG)
    assert run.read_metrics() == []
    run.append_metrics({"step": 1})
    with run.metrics.open("ab") as file:
        file.write('{"step": 2, "text": "é'.encode()[:-1])
    assert run.read_metrics() == [{"step": 1}]
    RunFolder.create(run.path, CONFIG, resume=True).append_metrics({"step": 2})
    assert run.read_metrics() == [{"step": 1}, {"step": 2}]


def test_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.metrics.write_text('{"step": 1}\n[2]\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl line 2 is no JSON object"):
        run.read_metrics()


def test_truncate_after(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.truncate_after(5)  # nothing there yet
    for step in range(1, 6):
        run.append_metrics({"step": step})
    run.append_metrics({"note": "kept"})
    run.append_samples([{"step": s, "i": i} for s in (2, 4) for i in range(2)])
    run.samples.write_text(run.samples.read_text() + '{"step": 1, "to')
    run.truncate_after(3)
    assert run.read_metrics() == [{"step": 1}, {"step": 2}, {"step": 3}, {"note": "kept"}]
    assert run.samples.read_text() == '{"step": 2, "i": 0}\n{"step": 2, "i": 1}\n'
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.jsonl", "samples.jsonl"]


def test_a_failed_truncation_changes_nothing(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.metrics.write_text('{"step": 1}\nbroken\n{"step": 3}\n')
    before = run.metrics.read_bytes()
    with pytest.raises(UserError, match="line 2"):
        run.truncate_after(1)
    assert run.metrics.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def make_checkpoint(
    folder: Path, weights: str = "model.safetensors", processes: int = 1, pending: bool = False
) -> Path:
    folder.mkdir()
    save_file({"w": torch.arange(6.0), "b": torch.zeros(2)}, folder / weights)
    ranks = range(processes)
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.save({"state": torch.zeros(3)}, folder / name)
    for name in ["rng_state.pth"] if processes == 1 else [f"rng_state_{rank}.pth" for rank in ranks]:
        torch.save({"cpu": torch.zeros(3)}, folder / name)
    for rank in ranks if pending else ():
        save_file({"0.advantages": torch.zeros(2)}, folder / f"rollouts-{rank}.safetensors")
    state = {"micro_batches_done": 1, "pending": [{}] if pending else None, "processes": processes}
    (folder / "covgrpo_state.json").write_text(json.dumps(state))
    (folder / "trainer_state.json").write_text('{"global_step": 1}')
    return folder


def test_checkpoints_are_complete_and_sorted_by_number(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.latest_checkpoint() is None
    ten, nine = make_checkpoint(tmp_path / "checkpoint-10"), make_checkpoint(tmp_path / "checkpoint-9")
    lora = make_checkpoint(tmp_path / "checkpoint-8", "adapter_model.safetensors")
    make_checkpoint(tmp_path / "checkpoint-25-old")
    assert run.checkpoints() == [lora, nine, ten]
    assert run.latest_checkpoint() == ten


def test_a_checkpoint_of_an_earlier_version_counts(tmp_path: Path) -> None:
    """It does not say how many processes there were."""
    folder = make_checkpoint(tmp_path / "checkpoint-1")
    (folder / "covgrpo_state.json").write_text('{"micro_batches_done": 1, "pending": null}')
    assert RunFolder(tmp_path).checkpoints() == [folder]
    (folder / "rng_state.pth").unlink()
    assert RunFolder(tmp_path).checkpoints() == []


@pytest.mark.parametrize("damage", ["missing", "empty", "torn"])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_checkpoint_without_a_part_does_not_count(tmp_path: Path, processes: int, damage: str) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint-3", processes=processes, pending=True)
    parts = sorted(folder.iterdir())
    assert len(parts) == 5 + 2 * processes
    for part in parts:
        content = part.read_bytes()
        assert RunFolder(tmp_path).checkpoints() == [folder]
        if damage == "missing":
            part.unlink()
        else:
            part.write_bytes(content[: -1 if damage == "torn" else 0])
        assert RunFolder(tmp_path).checkpoints() == [], part.name
        part.write_bytes(content)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_checkpoint_whose_model_cannot_be_read_does_not_count(tmp_path: Path, name: str) -> None:
    earlier, latest = (make_checkpoint(tmp_path / f"checkpoint-{step}") for step in (1, 2))
    (latest / name).write_text('{"vocab_size": 16}')
    assert RunFolder(tmp_path).latest_checkpoint() == latest
    for torn in ("", '{"vocab_size": '):
        (latest / name).write_text(torn)
        assert RunFolder(tmp_path).latest_checkpoint() == earlier


def test_parts_that_lie_on_another_machine_are_named(tmp_path: Path) -> None:
    """Starting anew would drop the run's records; with an earlier checkpoint, or an unfinished one, nothing is lost."""
    run = RunFolder(tmp_path)
    folder = make_checkpoint(tmp_path / "checkpoint-4", processes=2, pending=True)
    for name in ("rng_state_1.pth", "rollouts-1.safetensors"):
        (folder / name).unlink()
    with pytest.raises(UserError, match=r"checkpoint-4 lacks rng_state_1\.pth, rollouts-1\.safetensors of other"):
        run.checkpoint_to_resume()
    (folder / "trainer_state.json").rename(tmp_path / "kept")
    assert run.checkpoint_to_resume() is None
    (tmp_path / "kept").rename(folder / "trainer_state.json")
    earlier = make_checkpoint(tmp_path / "checkpoint-2", processes=2)
    assert run.checkpoint_to_resume() == earlier


def test_shards_count_when_their_index_is_there(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint-1", processes=2)
    for name, replaced in (("pytorch_model_fsdp_0", "model.safetensors"), ("optimizer_0", "optimizer.pt")):
        (folder / replaced).unlink()
        (folder / name).mkdir()
        (folder / name / "__0_0.distcp").write_bytes(b"shard")
        assert RunFolder(tmp_path).checkpoints() == []
        (folder / name / ".metadata").write_bytes(b"index")
        assert RunFolder(tmp_path).checkpoints() == [folder]


def test_sharded_checkpoint_needs_every_shard(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "checkpoint-1", "model-00001-of-00002.safetensors")
    shards = {"w": "model-00001-of-00002.safetensors", "v": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert RunFolder(tmp_path).checkpoints() == []
    save_file({"v": torch.zeros(1)}, folder / shards["v"])
    assert RunFolder(tmp_path).checkpoints() == [folder]


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = describe_environment()
    assert found["versions"]["python"] == platform.python_version()
    assert found["torch_threads"] == torch.get_num_threads()
    assert found["ram_bytes"] > 1 << 28
    assert found["variables"]["WORLD_SIZE"] == "4"
    assert found["variables"]["CUDA_VISIBLE_DEVICES"] is None
    assert len(found["gpus"]) == torch.cuda.device_count()
    text = json.dumps(found)
    assert platform.node() not in text
    assert f'"{getpass.getuser()}"' not in text
    assert str(Path.home()) not in text


def test_the_environment_is_of_this_checkout() -> None:
    assert describe_environment()["git"] == environment.describe_git(Path(covgrpo.__file__).resolve().parents[2])


def test_git_commit_and_dirt(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        names = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", *names, "-C", str(tmp_path), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    assert environment.describe_git(tmp_path) is None  # a repository, but not covgrpo's
    (tmp_path / "src" / "covgrpo").mkdir(parents=True)
    (tmp_path / "src" / "covgrpo" / "__init__.py").touch()
    git("add", ".")
    git("commit", "-qm", "x")
    clean = environment.describe_git(tmp_path)
    assert clean == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "new.py").touch()
    assert environment.describe_git(tmp_path) == clean | {"dirty": True}


def test_a_run_that_is_taken_back_leaves_no_evaluation_either(tmp_path: Path) -> None:
    """That of step 0 is written before training begins."""
    run = RunFolder.create(tmp_path / "run", CONFIG)
    run.append_evaluation({"step": 0})
    run.discard()
    assert not run.path.exists()
