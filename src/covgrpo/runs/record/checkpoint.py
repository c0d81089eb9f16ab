"""Whether a checkpoint is all there: one that lacks a part would be resumed from inexactly, or not at all.

Standard library only. Beside transformers' own files the trainer writes ``covgrpo_state.json``
(:mod:`covgrpo.trl.resume`), which says how many processes there were and whether rollouts are to be used again.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

from covgrpo.errors import UserError
from covgrpo.files import load_json


def is_complete(folder: Path) -> bool:
    """Whether a checkpoint has everything that a run needs to go on as if it had not been stopped.

    Parts that are written in place count where they are whole: JSON that parses, safetensors as long as their header
    says, torch's archives with their directory, which is at their end. ``trainer_state.json`` is the last of the first
    process; the other processes' random states and rollouts may be later.
    """
    return is_complete_of_first(folder) and not lacking_of_others(folder)


def is_complete_of_first(folder: Path) -> bool:
    """Whether everything is there that the first process writes."""
    try:
        _object(folder / "trainer_state.json")
        state = _object(folder / "covgrpo_state.json")
        for path in folder.glob("*.json"):  # the model's and the tokenizer's too
            load_json(path)
        return (
            (_has_weights(folder) or _has_shards(folder, "pytorch_model_fsdp"))
            and (_is_archive(folder / "optimizer.pt") or _has_shards(folder, "optimizer") or _has_deepspeed(folder))
            and (_is_archive(folder / "scheduler.pt") or _has_deepspeed(folder))
            # Before the number of processes was written, any random state will do.
            and any(_is_archive(path) for path in folder.glob(_random_state(state.get("processes"), 0)))
            and (state["pending"] is None or _is_whole_safetensors(folder / "rollouts-0.safetensors"))
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def lacking_of_others(folder: Path) -> list[str]:
    """The files of processes after the first that are not there, or not whole, in a checkpoint that is the first's."""
    state = _object(folder / "covgrpo_state.json")
    lacking = []
    for rank in range(1, state.get("processes", 1)):
        if not _is_archive(folder / _random_state(state["processes"], rank)):
            lacking.append(_random_state(state["processes"], rank))
        if state["pending"] is not None and not _has_rollouts(folder, rank):
            lacking.append(f"rollouts-{rank}.safetensors")
    return lacking


def _is_whole_model(folder: Path) -> bool:
    """Whether transformers can load the folder's model: shards of FSDP and DeepSpeed have to be put together first."""
    try:
        return _has_weights(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def whole_model_of(checkpoint: Path) -> Path:
    """Return the folder with a checkpoint's model, whole: itself, or where the run saved what is here in shards.

    Raises:
        UserError: there are shards only.

    """
    if _is_whole_model(checkpoint):
        return checkpoint
    saved = checkpoint.parent / "model"
    if not _is_whole_model(saved):
        raise UserError(f"{checkpoint} holds shards only, and {saved} was not saved; go on with more --steps.")
    return saved


def _has_weights(folder: Path) -> bool:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = set(_object(index)["weight_map"].values())
    else:
        names = {p.name for p in folder.glob("*.safetensors")} & {"model.safetensors", "adapter_model.safetensors"}
    return bool(names) and all(_is_whole_safetensors(folder / name) for name in names)


def _has_shards(folder: Path, name: str) -> bool:
    """Whether FSDP's shards are there; torch renames their ``.metadata`` into place when all processes are done."""
    return (folder / f"{name}_0" / ".metadata").is_file()


def _has_deepspeed(folder: Path) -> bool:
    """Whether DeepSpeed's states are there; it writes ``latest``, which names their folder, when all are done."""
    latest = folder / "latest"
    return latest.is_file() and (folder / latest.read_text(encoding="utf-8").strip()).is_dir()


def _random_state(processes: int | None, rank: int) -> str:
    return "rng_state*.pth" if processes is None else "rng_state.pth" if processes == 1 else f"rng_state_{rank}.pth"


def _has_rollouts(folder: Path, rank: int) -> bool:
    try:
        return _is_whole_safetensors(folder / f"rollouts-{rank}.safetensors")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _object(path: Path) -> dict[str, Any]:
    value = load_json(path)
    if not isinstance(value, dict):
        raise TypeError(f"{path} holds no JSON object")
    return value


def _is_archive(path: Path) -> bool:
    return path.is_file() and zipfile.is_zipfile(path)


def _is_whole_safetensors(path: Path) -> bool:
    """Whether the file is as long as its header says: 8 bytes of header length, the header (JSON), the tensors."""
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        if header_bytes > size:
            return False
        header = json.loads(file.read(header_bytes))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return size == 8 + header_bytes + max(ends, default=0)
