"""Converts a GGUF file to a model folder: config.json, model.safetensors, tokenizer and generation config."""

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from covgrpo.errors import UserError

# What transformers leaves on a model that it dequantised; save_pretrained refuses or mislabels such a model.
_MODEL_MARKS = ("is_quantized", "quantization_method", "hf_quantizer")
_CONFIG_MARKS = ("quantization_config", "_is_quantized", "_model_name_or_path")


def convert_gguf(gguf: Path, folder: Path, title: str, context_tokens: int, splits_digits: bool) -> None:
    """Writes the model folder of a GGUF file into the empty ``folder``.

    The weights are saved in float32: dequantised Q4_1 values are ``scale * q + minimum`` with a half-precision scale
    and minimum, which bfloat16 rounds (82 % of SmolLM2-135M's values) and float16 as well (48 %).

    ``splits_digits`` says that the model's own tokenizer makes each digit a token of its own.

    Raises:
        UserError: transformers or gguf cannot read the file, or the folder has no space.
        OSError: ``folder`` cannot be written.
    """
    with _quiet_transformers():
        tokenizer, model = _read(gguf)
        if splits_digits:
            _restore_digit_splitting(tokenizer)
        _clear_marks(model, title)
        tokenizer.model_max_length = context_tokens
        tokenizer.name_or_path = title
        tokenizer.init_kwargs.pop("local_files_only", None)  # how it was read here, not how to read it later
        _save(model, tokenizer, folder)


def _read(gguf: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": gguf.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), **where)
        model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=torch.float32, **where)
    except (ImportError, ValueError, KeyError, RuntimeError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"cannot convert {gguf}: {first_line}; check pip install 'gguf>=0.17'") from error
    return tokenizer, model


def _restore_digit_splitting(tokenizer: Any) -> None:
    """Puts back the first step of SmolLM's pre-tokenizer, which transformers' GGUF reader drops.

    The file says ``tokenizer.ggml.pre = smollm``, which stands for: split off each digit, then GPT-2's byte-level
    split. Without the first step, white space before a number splits otherwise than in training: a blank line before
    ``3`` gives two newline tokens for the one that the model knows.
    """
    from tokenizers import pre_tokenizers as pre

    digits = pre.Digits(individual_digits=True)
    byte_level = pre.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre.Sequence([digits, byte_level])


def _clear_marks(model: Any, title: str) -> None:
    # Not all versions of transformers set all of them, and some are also read-only names on the class.
    for mark in _MODEL_MARKS:
        vars(model).pop(mark, None)
    for mark in _CONFIG_MARKS:
        vars(model.config).pop(mark, None)
    model.config._name_or_path = title
    model.generation_config._from_model_config = False


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:  # the Rust writers of safetensors and tokenizers do not raise OSError on a full disk
        raise UserError(f"cannot write the model to {folder.parent.parent}: {error}; make space there") from error


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars or warnings from transformers; its settings are put back afterwards."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):  # the GGUF reader has a bar of its own
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
