"""Completions of benchmark problems: drawn once, recorded as they come, so that a stopped evaluation goes on."""

import glob
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from covgrpo.errors import UserError
from covgrpo.files import read_json_lines, replacing, writing

_MB = 1 << 20


@dataclass(frozen=True)
class GenerationSettings:
    """How completions are drawn; the defaults are those of the paper's evaluation.

    Args:
        samples: completions a problem.
        temperature: 0: greedy.
        top_p: fraction of the probability mass that is drawn from.
        max_completion_length: tokens.
        seed: of the sampling.
        batch_size: completions at once; part of the seed's meaning.

    """

    samples: int = 1
    temperature: float = 0.6
    top_p: float = 0.95
    max_completion_length: int = 32_768
    seed: int = 0
    batch_size: int = 64


@dataclass(frozen=True)
class Drawn:
    """A completion: its text, its length in tokens, and whether the limit cut it off."""

    completion: str
    length: int
    truncated: bool


class Engine(Protocol):
    """Draws completions."""

    def draw(self, prompts: Sequence[list[dict[str, str]]], seed: int) -> list[Drawn]:
        """One completion for each list of chat messages, in order."""


class SamplerEngine:
    """Our own sampler on a loaded model."""

    def __init__(self, model: Any, tokenizer: Any, settings: GenerationSettings, bf16: bool | None = None):
        self.model, self.tokenizer, self.settings, self.bf16 = model.eval(), tokenizer, settings, bf16

    def draw(self, prompts: Sequence[list[dict[str, str]]], seed: int) -> list[Drawn]:
        """See :class:`Engine`."""
        import torch

        from covgrpo.evaluation.evaluate import encode_prompt, eos_ids
        from covgrpo.hardware import autocast
        from covgrpo.rollouts import SamplingSettings, sample

        ends = eos_ids(self.model, self.tokenizer)
        settings = SamplingSettings(
            max_new_tokens=self.settings.max_completion_length,
            eos_token_ids=ends,
            pad_token_id=self.tokenizer.pad_token_id,
            temperature=self.settings.temperature,
            top_p=self.settings.top_p,
        )
        device = next(self.model.parameters()).device
        generator = torch.Generator(device).manual_seed(seed)
        with autocast(device, self.bf16):
            drawn = sample(self.model, [encode_prompt(self.tokenizer, p) for p in prompts], settings, generator)
        texts = self.tokenizer.batch_decode(drawn.token_ids, skip_special_tokens=True)
        return [Drawn(text, len(ids), ids[-1] not in ends) for text, ids in zip(texts, drawn.token_ids, strict=True)]


class VllmEngine:
    """vLLM, where it is installed and there is an accelerator; ``options`` are further arguments of ``vllm.LLM``."""

    def __init__(
        self,
        model: str,
        settings: GenerationSettings,
        trust_remote_code: bool = False,
        options: dict[str, Any] | None = None,
    ):
        from vllm import LLM

        self.settings = settings
        fixed = {"model": model, "trust_remote_code": trust_remote_code, "seed": settings.seed}
        if taken := fixed.keys() & (options or {}).keys():
            raise UserError(f"--vllm {min(taken)}=...: this has a flag of its own.")
        try:
            self.llm = LLM(**fixed, **(options or {}))
        except (TypeError, ValueError) as error:  # an argument that vLLM does not know, or a value that it refuses
            raise UserError(f"vLLM: {' '.join(str(error).split())}") from error

    def draw(self, prompts: Sequence[list[dict[str, str]]], seed: int) -> list[Drawn]:
        """See :class:`Engine`."""
        from jinja2 import TemplateError
        from vllm import SamplingParams

        # vLLM makes one generator for each request from the request's seed: with one seed for all, the completions of a
        # problem would be the same.
        parameters = [
            SamplingParams(
                temperature=self.settings.temperature,
                top_p=self.settings.top_p,
                max_tokens=self.settings.max_completion_length,
                seed=_seed_of_row(seed, row),
            )
            for row in range(len(prompts))
        ]
        try:
            results = self.llm.chat(list(prompts), parameters, use_tqdm=False)
        except (ValueError, TemplateError) as error:  # no chat template, one that refuses, a prompt too long
            raise UserError(f"vLLM: {' '.join(str(error).split())}") from error
        outputs = [result.outputs[0] for result in results]
        return [Drawn(o.text, len(o.token_ids), o.finish_reason == "length") for o in outputs]


def _seed_of_row(seed: int, row: int) -> int:
    """A seed for each row of each batch, in [0, 2^63).

    By a hash: ``seed + row`` would be seeds of the next batch too, where completions of the same problem may lie.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{row}".encode()).digest()[:8], "big") >> 1


def draw_all(
    engine: Callable[[], Engine],
    prompts: dict[str, list[dict[str, str]]],
    settings: GenerationSettings,
    records: Path | None,
    what: dict[str, Any],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[Drawn]]:
    """Draw ``settings.samples`` completions for each problem, batch by batch.

    Args:
        engine: makes the engine; called only where something is left to draw.
        prompts: problem id -> chat messages.
        settings: see :class:`GenerationSettings`.
        records: JSON-lines file to which each batch is appended, and from which a stopped evaluation goes on.
        what: what else decides the completions (model, benchmark, engine); kept in the file's first line.
        progress: called with (completions done, completions in all).

    Raises:
        UserError: the file cannot be used, or is of another evaluation.
    """
    rows = [key for key in prompts for _ in range(settings.samples)]
    head = {"evaluation": {**what, **asdict(settings), "prompts": _digest(prompts)}}
    done = _read_records(records, head, rows) if records else []
    made: Engine | None = None
    for start in range(len(done), len(rows), settings.batch_size):
        progress(start, len(rows))
        made = made or engine()
        chunk = rows[start : start + settings.batch_size]
        # A batch has a seed of its own, so that going on gives what going through would have given.
        drawn = made.draw([prompts[key] for key in chunk], settings.seed * 1_000_003 + start // settings.batch_size)
        if records:
            _append(records, [{"id": key, **asdict(one)} for key, one in zip(chunk, drawn, strict=True)])
        done += drawn
    progress(len(rows), len(rows))
    found: dict[str, list[Drawn]] = {}
    for key, one in zip(rows, done, strict=True):
        found.setdefault(key, []).append(one)
    return found


def _digest(prompts: dict[str, list[dict[str, str]]]) -> str:
    return hashlib.sha256(json.dumps(prompts, sort_keys=True).encode()).hexdigest()[:16]


def _read_records(path: Path, head: dict[str, Any], rows: list[str]) -> list[Drawn]:
    """Completions recorded so far, in whole batches; starts the file where there is none."""
    lines = (
        [line for line in read_json_lines(path) if line.ended] if path.exists() else []
    )  # a torn last one has no end
    if not lines and _is_start_of(path, head):
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
        _append(path, [head])
        return []
    try:
        for line in lines:
            if line.error is not None:
                raise line.error
        first = lines[0].value if lines else None
        records = [line.value for line in lines[1:]]
        done = [Drawn(r["completion"], r["length"], r["truncated"]) for r in records]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a file of recorded completions ({error}); name another --records.") from error
    if not _is_same(first, head):
        raise UserError(f"{path} holds completions of another evaluation; name another --records, or remove it.")
    size = head["evaluation"]["batch_size"]
    whole = len(done) if len(done) == len(rows) else len(done) // size * size
    if [r["id"] for r in records[:whole]] != rows[:whole]:
        raise UserError(f"{path} holds completions of other problems; name another --records, or remove it.")
    for torn in path.parent.glob(
        f".{glob.escape(path.name)}.*.tmp"
    ):  # a process was killed while it wrote the file anew
        torn.unlink(missing_ok=True)
    kept = "".join(line.raw.decode() + "\n" for line in lines[: whole + 1])
    if len(kept.encode()) < path.stat().st_size:
        with writing(path), replacing(path) as file:  # whole at any time: what was drawn is not to be lost by going on
            file.write(kept)
    return done[:whole]


def weights_digest(folder: Path) -> str:
    """A short hash of a folder's weights, by the size, the first and the last MB of each file.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(_MB))
            file.seek(max(0, size - _MB))
            digest.update(file.read(_MB))
    return digest.hexdigest()[:16]


def _is_same(first: Any, head: dict[str, Any]) -> bool:
    """Whether records are of this evaluation; those of earlier versions do not say by which weights."""
    if first == head:
        return True
    known = {name: value for name, value in head["evaluation"].items() if name != "weights"}
    return bool(first == {"evaluation": known})


def _is_start_of(path: Path, head: dict[str, Any]) -> bool:
    """Whether the file is not there, or holds what a process left that was killed while it wrote the first line."""
    return not path.exists() or (json.dumps(head, ensure_ascii=False) + "\n").encode().startswith(path.read_bytes())


def _append(path: Path, records: list[dict[str, Any]]) -> None:
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
