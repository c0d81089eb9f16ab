"""Files from outside that hold a pickle which would run code: refused, or read without running it."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from cli_cases import command

from covgrpo.cli import main


class Bomb:
    """Unpickling it makes the file ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_the_bomb_would_go_off(tmp_path: Path) -> None:
    torch.save({"state": Bomb(tmp_path / "HIT")}, tmp_path / "f.pt")
    torch.load(tmp_path / "f.pt", weights_only=False)
    assert (tmp_path / "HIT").exists()


def test_weights_as_a_pickle_are_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(work.parent / "tiny", work / "m")
    (work / "m" / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Bomb(work / "HIT")}, work / "m" / "pytorch_model.bin")
    assert main(["train", *command()[1:], "--model", "./m"]) == 2
    assert "only as a pickle (pytorch_model.bin)" in capsys.readouterr().err
    assert not (work / "HIT").exists()


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_poisoned_checkpoint_runs_nothing(work: Path, capsys: pytest.CaptureFixture[str], how: str) -> None:
    assert main(command("--save-steps", "1", "--steps", "1")) == 0
    checkpoint = work / "out" / "checkpoint-1"
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "training_args.bin"):
        part = checkpoint / name
        kept = part.read_bytes() if part.exists() else None
        if how == "torch":
            torch.save({"state": Bomb(work / "HIT")}, part)
        else:
            part.write_bytes(pickle.dumps(Bomb(work / "HIT")))
        capsys.readouterr()
        code = main(command("--save-steps", "1", "--steps", "2", "--resume"))
        error = capsys.readouterr().err
        assert not (work / "HIT").exists(), name
        assert code in (0, 2) and "Traceback" not in error, f"{name}: {error[-500:]}"
        shutil.rmtree(work / "out" / "checkpoint-2", ignore_errors=True)
        if kept is None:
            part.unlink(missing_ok=True)
        elif checkpoint.exists():
            part.write_bytes(kept)
