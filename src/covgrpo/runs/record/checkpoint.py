"""Whether a checkpoint is all there: one that lacks a part would be resumed from inexactly, or not at all.

Standard library only. Beside transformers' own files the trainer writes ``covgrpo_state.json``
(:mod:`covgrpo.trl.resume`), which says how many processes there were and whether rollouts are to be used again.
"""

import json
import zipfile
from pathlib import Path
from typing import Any


def is_complete(folder: Path) -> bool:
    """Whether a checkpoint has everything that a run needs to go on as if it had not been stopped.

    Parts that are written in place count where they are whole: JSON that parses, safetensors as long as their header
    says, torch's archives with their directory, which is at their end. ``trainer_state.json`` is the last of the first
    process; the other processes' random states and rollouts may be later.
    """
    try:
        _object(folder / "trainer_state.json")
        state = _object(folder / "covgrpo_state.json")
        return (
            (_has_weights(folder) or _has_shards(folder, "pytorch_model_fsdp"))
            and (_is_archive(folder / "optimizer.pt") or _has_shards(folder, "optimizer") or _has_deepspeed(folder))
            and (_is_archive(folder / "scheduler.pt") or _has_deepspeed(folder))
            and _has_random_states(folder, state.get("processes"))
            and (state["pending"] is None or _has_rollouts(folder, state.get("processes", 1)))
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def has_weights(folder: Path) -> bool:
    """Whether transformers can load the folder's model: shards of FSDP and DeepSpeed have to be put together first."""
    try:
        return _has_weights(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


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


def _has_random_states(folder: Path, processes: int | None) -> bool:
    if processes is None:  # written before the number was: any will do
        return any(_is_archive(path) for path in folder.glob("rng_state*.pth"))
    names = ["rng_state.pth"] if processes == 1 else [f"rng_state_{rank}.pth" for rank in range(processes)]
    return all(_is_archive(folder / name) for name in names)


def _has_rollouts(folder: Path, processes: int) -> bool:
    return all(_is_whole_safetensors(folder / f"rollouts-{rank}.safetensors") for rank in range(processes))


def _object(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
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
