"""From the name that a user gives to a model and its tokenizer."""

import os
import re
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from covgrpo.errors import UserError
from covgrpo.files import load_json, user_path
from covgrpo.models.builtin import BUILTIN_MODELS, cached_folder, is_cached, materialise
from covgrpo.models.packaged import PACKAGED_MODELS
from covgrpo.packages import require
from covgrpo.suggest import nearest

DTYPES = ("float32", "bfloat16", "float16", "auto")
_ADAPTER_CONFIG = "adapter_config.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
# Pickles that a trainer leaves beside the weights; they are not weights and are not loaded here.
_TRAINER_STATE = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state.*)\.(bin|pt|pth)")


def resolve_model(name: str) -> str:
    """What transformers loads ``name`` from: a checked local folder, or a hub id as it is.

    Names of built-in models come first (write ``./smollm2-135m`` for a folder of that name), then local folders, then
    anything shaped like a hub id (``org/name`` or ``name``).

    Raises:
        UserError: a folder that is not a whole model, weights that are only pickles, a mistyped built-in name, or a
            built-in model that cannot be converted.
    """
    if name in PACKAGED_MODELS:
        return str(PACKAGED_MODELS[name].folder)
    if name in BUILTIN_MODELS:
        return str(materialise(name))
    path = user_path(name)
    if name and path.is_dir():
        _check_folder(path)
        return str(path)
    if name and path.exists():
        raise UserError(f"model {name} is a file; give the folder that holds config.json and the weights")
    if not _HUB_ID.fullmatch(name):
        raise UserError(f"model folder {name!r} does not exist, and that is no hub id such as org/name")
    if meant := _meant_builtin(name):
        raise UserError(f"there is no built-in model {name!r}; did you mean {meant!r}? (hub models: org/name)")
    return name


def load_model(name: str, dtype: str = "float32", trust_remote_code: bool = False) -> tuple[Any, Any]:
    """Loads ``(model, tokenizer)`` from whatever ``resolve_model`` accepts; the model is on the CPU, in eval mode.

    The tokenizer pads left, as generation needs, and has a pad token (eos where it had none). A LoRA adapter folder
    gives its base model with the adapter merged in. Only safetensors weights are read.

    Raises:
        UserError: besides ``resolve_model``'s, an unknown dtype, a hub that does not answer, damaged or missing
            weights, a tokenizer that does not fit the model, an adapter without peft installed.
        MissingPackageError: there is no transformers or no gguf to load it with.
    """
    if dtype not in DTYPES:
        raise UserError(f"model dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    require(f"model {name}", "transformers", "safetensors", *(["gguf"] if _is_to_be_converted(name) else []))
    where = _reachable(resolve_model(name), name)
    if Path(where, _ADAPTER_CONFIG).is_file():
        base = _reachable(_base_model(Path(where)), name)
        model = _merge_adapter(_load_weights(base, name, dtype, trust_remote_code), where, name)
        tokenizer_from = where if has_tokenizer(Path(where)) else base
    else:
        model, tokenizer_from = _load_weights(where, name, dtype, trust_remote_code), where
    return model, _load_tokenizer(tokenizer_from, name, model, trust_remote_code)


def _is_to_be_converted(name: str) -> bool:
    return name in BUILTIN_MODELS and not is_cached(name)


def _meant_builtin(name: str) -> str | None:
    """The built-in model whose name or title is close to the plain ``name``."""
    known = {alias.lower(): m.name for m in BUILTIN_MODELS.values() for alias in (m.name, m.title)}
    known |= {built: built for built in PACKAGED_MODELS}
    close = None if "/" in name else nearest(name.lower(), known, cutoff=0.75)
    return None if close is None else known[close]


def _check_folder(folder: Path) -> None:
    adapter = folder / _ADAPTER_CONFIG
    if not adapter.is_file() and not (folder / "config.json").is_file():
        raise UserError(f"model folder {folder} has no config.json")
    stem = "adapter_model" if adapter.is_file() else "*"
    weights = sorted(folder.glob(f"{stem}.safetensors"))
    if not weights:
        pickles = [p.name for e in ("bin", "pt", "pth") for p in sorted(folder.glob(f"*.{e}"))]
        pickles = [p for p in pickles if not _TRAINER_STATE.fullmatch(p)]
        if pickles:
            raise UserError(
                f"model folder {folder} has its weights only as a pickle ({pickles[0]}), which can run code "
                "when loaded; convert it to safetensors"
            )
        raise UserError(f"model folder {folder} has no weights ({stem}.safetensors)")
    _check_shards(folder)
    if not adapter.is_file() and not has_tokenizer(folder):
        raise UserError(f"model folder {folder} has no tokenizer (tokenizer.json)")


def _check_shards(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file() and not (folder / "model.safetensors").is_file():
        try:
            shards = sorted(set(_read_json(index)["weight_map"].values()))
        except (KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{index} has no weight_map; the model folder is damaged") from error
        missing = [s for s in shards if not (folder / s).is_file()]
        if missing:
            raise UserError(f"model folder {folder} has no {missing[0]} ({len(missing)} of {len(shards)} are missing)")


def is_adapter(name: str) -> bool:
    """Whether a name is the folder of a LoRA adapter."""
    return (user_path(name) / _ADAPTER_CONFIG).is_file()


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's and no model's: both have a ``config.json``, a model's has a tokenizer beside it."""
    return (folder / "config.json").is_file() and not has_tokenizer(folder)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer's vocabulary."""
    return any((folder / f).is_file() for f in _TOKENIZER_FILES)


def _read_json(path: Path) -> Any:
    try:
        return load_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} as JSON ({error})") from error


def _base_model(folder: Path) -> str:
    config = _read_json(folder / _ADAPTER_CONFIG)
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not base or not isinstance(base, str):
        raise UserError(f"{folder / _ADAPTER_CONFIG} names no base model (base_model_name_or_path)")
    # An adapter trained elsewhere names the cache or the package of that machine.
    folders = {cached_folder(name).name: name for name in BUILTIN_MODELS}
    if not Path(base).is_dir():  # a folder of the user's own may have a packaged model's name
        folders |= {name: name for name in PACKAGED_MODELS}
    return resolve_model(folders.get(Path(base).name, base))


def _merge_adapter(model: Any, folder: str, name: str) -> Any:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise UserError(f"model {name} is a LoRA adapter, which needs peft: pip install 'covgrpo[peft]'") from error
    try:
        merged: Any = PeftModel.from_pretrained(model, folder).merge_and_unload()
    except _load_errors() as error:
        raise UserError(f"cannot load the adapter {name}: {_first_sentence(error)}") from error
    return merged.requires_grad_(True)  # peft has frozen the base


def _load_weights(where: str, name: str, dtype: str, trust_remote_code: bool) -> Any:
    from transformers import AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM  # its annotations leave out output_loading_info's second result
    try:
        model, info = loader.from_pretrained(
            where, dtype=dtype, use_safetensors=True, output_loading_info=True, trust_remote_code=trust_remote_code
        )
    except _load_errors() as error:
        raise UserError(_why_not(name, where, error)) from error
    if info["missing_keys"]:  # transformers only warns, and goes on with random values
        keys = sorted(info["missing_keys"])
        raise UserError(f"model {name} lacks {len(keys)} weights of its architecture, such as {keys[0]}")
    return model


def _load_tokenizer(where: str, name: str, model: Any, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=trust_remote_code)
    except _load_errors() as error:
        raise UserError(_why_not(f"{name} (its tokenizer)", where, error)) from error
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError(f"the tokenizer of model {name} has neither a pad nor an eos token")
        tokenizer.pad_token = tokenizer.eos_token
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise UserError(f"the tokenizer of model {name} has {len(tokenizer)} tokens, its embeddings only {rows}")
    for config in (model.config, model.generation_config):
        if config is not None and getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def _load_errors() -> tuple[type[Exception], ...]:
    from safetensors import SafetensorError

    # What transformers raises for input that is not as it should be; torch's shape mismatch is a RuntimeError.
    return (OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError, AttributeError, SafetensorError)


def _why_not(name: str, where: str, error: Exception) -> str:
    place = f"from {where}" if Path(where).is_dir() else "(no local folder) from the hub"
    return f"cannot load model {name} {place}: {_first_sentence(error)}"


def _first_sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return re.split(r"(?<=\w)\. ", lines[0])[0].rstrip(".:") if lines else type(error).__name__


def _hub_host() -> str:
    return urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname or "huggingface.co"


def _reachable(where: str, name: str) -> str:
    """``where``, or the copy in the hub's cache if ``where`` is a hub id and the hub cannot be reached."""
    if Path(where).is_dir() or not _hub_is_unreachable():
        return where
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(where, local_files_only=True)
    except (OSError, ValueError) as error:
        copy = "and no copy is in the hub's cache; give a local folder, or connect"
        raise UserError(
            f"cannot load model {name}: {where} is no local folder, {_hub_host()} cannot be reached, {copy}"
        ) from error


def _hub_is_unreachable() -> bool:
    """Whether the hub's host has no address: its client would retry for 46 seconds before it says so."""
    if any(os.environ.get(v) for v in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return False  # names are then looked up by the proxy
    try:
        socket.getaddrinfo(_hub_host(), 443)
    except OSError:
        return True
    return False
