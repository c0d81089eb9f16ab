"""A run killed while it writes a checkpoint goes on from one that is whole, and ends as if it had not been killed."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from run_cases import untimed, weights, words
from safetensors.torch import save_file

from covgrpo.cli import main
from covgrpo.errors import UserError
from covgrpo.runs.record.checkpoint import whole_model_of
from covgrpo.runs.record.folder import RunFolder
from covgrpo.trl import CovGRPOTrainer

pytestmark = pytest.mark.slow

# A checkpoint after each step; the third is in the middle of a rollout batch, and the first is removed after it.
FLAGS = ["--num-iterations", "2", "--save-steps", "1", "--steps", "4"]
_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}


class Snapshots:
    """Copies of a folder before each operation on files: what kill -9 at that moment would leave."""

    def __init__(self, folder: Path, copies: Path):
        self.folder, self.copies = folder, copies
        self.active, self.count = False, 0
        sys.addaudithook(self._on_event)  # cannot be taken back

    def take(self) -> None:
        if self.active:
            self.active = False
            shutil.copytree(self.folder, self.copies / f"{self.count:02d}")
            self.count, self.active = self.count + 1, True

    def _on_event(self, event: str, args: tuple[Any, ...]) -> None:
        if self.active and (event in _CHANGES or (event == "open" and _writes(*args))):
            self.take()


def _writes(path: Any, mode: str | None, flags: int) -> bool:
    return set(mode or "") & set("wax+") != set() or flags & (os.O_WRONLY | os.O_RDWR) != 0


@pytest.fixture
def killed(inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The run that goes through, ``unkilled``, and its folder at each moment of its third checkpoint."""
    snapshots = Snapshots(inside / "unkilled", tmp_path)
    save_checkpoint, save = CovGRPOTrainer._save_checkpoint, torch.save

    def saving(self: Any, *args: Any) -> None:
        if self.state.global_step == 3:
            # What an earlier try left: other files, all of them but the rollouts.
            shutil.copytree(inside / "unkilled" / "checkpoint-1", inside / "unkilled" / "checkpoint-3")
            (inside / "unkilled" / "checkpoint-3" / "rollouts-0.safetensors").unlink()
            snapshots.active = True
        save_checkpoint(self, *args)
        snapshots.take()
        snapshots.active = False

    def torch_save(*args: Any, **kwargs: Any) -> None:
        snapshots.take()  # torch's writer is no Python: no event
        save(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(CovGRPOTrainer, "_save_checkpoint", saving)
        patch.setattr(torch, "save", torch_save)
        assert main(words("unkilled", *FLAGS)) == 0
    yield sorted(tmp_path.glob("[0-9]*"))


def contents(checkpoint: Path) -> dict[str, bytes]:
    return {str(path.relative_to(checkpoint)): path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}


def torn(folder: Path) -> Path:
    """A copy whose latest file of the third checkpoint is cut in half, as if killed while it was written."""
    copy = Path(shutil.copytree(folder, folder.with_name(f"torn-{folder.name}")))
    files = [path for path in (copy / "checkpoint-3").rglob("*") if path.is_file()]
    if files:
        latest = max(files, key=lambda path: path.stat().st_mtime_ns)
        latest.write_bytes(latest.read_bytes()[: latest.stat().st_size // 2])
    return copy


def test_killed_at_any_moment_of_a_checkpoint(killed: list[Path], inside: Path) -> None:
    run = inside / "unkilled"
    whole = {"checkpoint-2": contents(killed[0] / "checkpoint-2"), "checkpoint-3": contents(run / "checkpoint-3")}
    chosen = {}
    for folder in [*killed, *map(torn, killed)]:
        latest = RunFolder(folder).latest_checkpoint()
        assert latest is not None
        assert contents(latest) == whole[latest.name], folder.name
        chosen[folder.name] = latest.name
    names = [folder.name for folder in killed]
    places = [chosen[name] for name in names]
    assert len(names) > 12 and places == sorted(places) and set(places) == set(whole)
    first = places.index("checkpoint-3")
    assert (killed[first - 1] / "checkpoint-3" / "rollouts-0.safetensors").exists()
    # Killed just before the checkpoint was complete, and while the file that completes it was written.
    for name in (names[first - 1], f"torn-{names[first]}"):
        assert chosen[name] == "checkpoint-2"
        shutil.copytree(killed[0].with_name(name), inside / f"killed-{name}")
        assert main(words(f"killed-{name}", *FLAGS, "--resume")) == 0
        assert untimed(inside / f"killed-{name}") == untimed(run)
        assert weights(inside / f"killed-{name}") == weights(run)


def test_the_whole_model_of_a_checkpoint_in_shards_is_the_saved_one(tmp_path: Path) -> None:
    """Or, where the run was killed before that, one sentence that says how to go on."""
    checkpoint, saved = tmp_path / "checkpoint-6", tmp_path / "model"
    (checkpoint / "pytorch_model_fsdp_0").mkdir(parents=True)
    with pytest.raises(UserError, match=r"checkpoint-6 holds shards only, and .*model was not saved; go on with more"):
        whole_model_of(checkpoint)
    saved.mkdir()
    save_file({"weight": torch.zeros(2)}, saved / "model.safetensors")
    assert whole_model_of(checkpoint) == saved
    save_file({"weight": torch.ones(2)}, checkpoint / "model.safetensors")
    assert whole_model_of(checkpoint) == checkpoint
