"""A tiny Llama and a character tokenizer, made on the spot: tests need no download."""

import string

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'][0] + '>' + m['content'] + '|' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
)
CHARACTERS = string.digits + string.ascii_letters + string.punctuation + " \n"


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocab = {"[PAD]": 0, "[UNK]": 1, "[EOS]": 2}
    vocab.update({character: index + len(vocab) for index, character in enumerate(CHARACTERS)})
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", eos_token="[EOS]", unk_token="[UNK]", padding_side="left"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_config(**changes) -> LlamaConfig:
    settings = {
        "vocab_size": 3 + len(CHARACTERS),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "eos_token_id": 2,
        "bos_token_id": None,
        "tie_word_embeddings": True,
    }
    return LlamaConfig(**{**settings, **changes})


def tiny_model(seed: int = 0, scale: float = 16.0, **changes) -> LlamaForCausalLM:
    """Random weights, scaled up so that the distribution is far from uniform and completions differ in length."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(tiny_config(**changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(scale)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = 2
    return model.float()
