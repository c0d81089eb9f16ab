"""Loading models and adapters; the real conversion is marked slow."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from model_cases import NAME, fill
from safetensors import SafetensorError

import covgrpo.models as models
from covgrpo.errors import UserError
from covgrpo.models import PACKAGED_MODELS, builtin, resolve

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
    assert isinstance(caught.value.__cause__, SafetensorError)
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
    elsewhere = "/home/someone/lib/python3.11/site-packages/covgrpo/models/traces-1m"
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": elsewhere}))
    assert resolve._base_model(folder) == str(PACKAGED_MODELS["traces-1m"].folder)
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
