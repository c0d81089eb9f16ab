"""Mutated input to the command line: each must end in success or in one sentence with exit code 2.

    python scripts/fuzz.py [COUNT] [--seed N] [--keep FOLDER]

Mutates files that work and the rows of tests/bad_inputs.py, in one process. A traceback, more than one line, another
exit code, more than 10 s or more than 2 GB above the start counts as a failure; its input is kept in FOLDER. Input i
of a seed is always the same. Linux only: it uses alarms and resource limits.
"""

import argparse
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from bad_inputs import CONFIGS, GOOD_LINE, LINES, METHODS
from bad_inputs_of_others import COMPLETIONS, FILES, RESULT, STUDIES, STUDY, TABLES
from tiny import tiny_model, tiny_tokenizer

from covgrpo.cli import main as covgrpo

LIMIT_S = 10
LIMIT_BYTES = 2 * 2**30
DRY = ["train", "--dry-run", "--json", "--model", "tiny", "--steps", "1", "--num-generations", "4"]
STEPS = [{"step": i, "reward": i / 9, "entropy": 1.0, "step_time": 0.5} for i in range(1, 6)]
METRICS = "".join(json.dumps(step) + "\n" for step in STEPS)
SAMPLE = json.dumps({"step": 1, "prompt": "1+1", "completion": "2", "reward": 1.0, "tokens": ["2"], "logps": [-0.1]})
CONFIG = "task: addition\nlearning_rate: 1.0e-5\nweighting: gaussian\nweighting_kwargs: {scope: group}\nseed: 3\n"
SPECS = ("addition?max=9", "countdown", "chain_sum?min_terms=2", "jsonl:p.jsonl?question=problem&answer=answer")
ODD = (
    *("null", "NaN", "-Infinity", "1e999", "-1", "0", "9" * 400, "true", '""', "[]", "{}", "\x00", "\ufeff", "\u202e"),
    *("\ud83d\ude00", "\r", "\n", "\t", "&a *a", "!!python/object/apply:os.system [id]", "../../x", "/dev/null", "%s"),
    *("{" * 200, "[" * 5_000, '"' * 3, "?", "&", "=", ":", "- ", "</script>", "'", "\\u0000", "1_000", "0x10", "~"),
)


@dataclass(frozen=True)
class Input:
    kind: str
    words: list[str]
    file: str = ""
    content: bytes = b""


def _texts(good: str, rows: dict[str, tuple[str | bytes, str]]) -> list[bytes]:
    texts = [text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass") for text, _ in rows.values()]
    return [good.encode()] * max(1, len(texts) // 2) + [text for text in texts if len(text) < 100_000]


# Kind -> (share, words, file, texts to mutate). The cheap ones have the larger shares.
FILE_KINDS: dict[str, tuple[int, list[str], str, list[bytes]]] = {
    "config": (4, [*DRY, "--config", "c.yaml"], "c.yaml", _texts(CONFIG, CONFIGS)),
    "problems": (4, [*DRY, "--task", "jsonl:p.jsonl"], "p.jsonl", _texts(GOOD_LINE, LINES)),
    "completions": (
        *(4, ["eval", "--benchmark", "good.jsonl", "--completions", "c.jsonl"], "c.jsonl"),
        _texts(FILES["done.jsonl"], COMPLETIONS),
    ),
    "study": (4, ["compare", "s.yaml", "--list"], "s.yaml", _texts(STUDY, STUDIES)),
    "result": (8, ["table", "r.json"], "r.json", _texts(RESULT, TABLES)),
    "metrics": (4, ["report", "run", "--output", "r.html"], "run/metrics.jsonl", [METRICS.encode()]),
    "samples": (2, ["report", "run", "--output", "r.html"], "run/samples.jsonl", [SAMPLE.encode()]),
}


def mutated(rng: random.Random, text: bytes) -> bytes:
    """``text`` after one to four random edits: flip, cut, repeat, insert, swap of a line, truncation."""
    for _ in range(rng.randint(1, 4)):
        a, b = sorted(rng.randint(0, len(text)) for _ in range(2))
        edit = rng.randrange(6)
        if edit == 0:
            text = text[:a] + bytes([rng.randrange(256)]) + text[a + 1 :]
        elif edit == 1:
            text = text[:a] + text[b:]
        elif edit == 2:
            text = text[:b] + text[a:b] * rng.choice([1, 2, 9]) + text[b:]
        elif edit == 3:
            text = text[:a] + rng.choice(ODD).encode("utf-8", "surrogatepass") + text[a:]
        elif edit == 4:
            text = text[:a] + rng.choice(ODD).encode("utf-8", "surrogatepass") + text[b:]
        else:
            text = text[:a]
        text = text[:200_000]
    return text


def _word(rng: random.Random, word: str) -> str:
    """A mutated word that a shell could pass: without a zero byte."""
    return os.fsdecode(mutated(rng, os.fsencode(word)).replace(b"\0", b""))


def one_input(seed: int, i: int) -> Input:
    """Input ``i`` of ``seed``."""
    rng = random.Random(f"{seed}/{i}")  # noqa: S311 (not cryptography)
    kinds = [*FILE_KINDS, "flags", "weighting", "spec"]
    kind = rng.choices(kinds, [*(share for share, *_ in FILE_KINDS.values()), 60, 5, 5])[0]
    if kind in FILE_KINDS:
        _, words, file, texts = FILE_KINDS[kind]
        return Input(kind, words, file, mutated(rng, rng.choice(texts)))
    if kind == "spec":
        return Input(kind, [*DRY, "--task", _word(rng, rng.choice(SPECS))])
    words = [*rng.choice([words for words, _ in METHODS.values()])]
    if kind == "weighting":
        words[rng.randrange(len(words))] = _word(rng, rng.choice(words))
        return Input(kind, [*DRY, "--task", "addition", *words])
    words = rng.choice([["table", "r.json"], ["models", "--json"], ["train", "--dry-run", "--steps", "1"]]) + words[:1]
    return Input(kind, [_word(rng, word) if rng.random() < 0.5 else word for word in words])


class TooLong(BaseException):
    """Not an Exception, so that no handler of the program takes it for one of its own."""


def _alarm(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise TooLong


def fault(given: Input) -> str:
    """Run one input in the current folder; "" if it ended well, else what was wrong."""
    if given.file:
        Path(given.file).write_bytes(given.content)
    out, err = io.StringIO(), io.StringIO()
    signal.alarm(LIMIT_S)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = covgrpo(given.words)
    except TooLong:
        return f"more than {LIMIT_S} s"
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {error}"[:300]
    finally:
        signal.alarm(0)
    said = err.getvalue()
    if code == 0:
        return "Traceback" if "Traceback" in said else ""
    if code != 2:
        return f"exit code {code}: {said[-300:]}"
    one = said.startswith("covgrpo: ") and said.endswith("\n") and said.count("\n") == 1
    return "" if one else f"not one sentence: {said[-300:]!r}"


@contextlib.contextmanager
def folder_of_inputs() -> Iterator[Path]:
    """A current folder of its own with the files that work; a limit on memory while it lasts."""
    before, limits = Path.cwd(), resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, _alarm)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    folder = Path(tempfile.mkdtemp())
    try:
        os.chdir(folder)
        own = {"run/metrics.jsonl": METRICS, "run/samples.jsonl": SAMPLE, "p.jsonl": GOOD_LINE}
        for name, text in {**FILES, **own}.items():
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text(text, encoding="utf-8")
        tiny_model().save_pretrained("tiny")
        tiny_tokenizer().save_pretrained("tiny")
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + LIMIT_BYTES, limits[1]))
        yield folder
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, handler)
        os.chdir(before)
        shutil.rmtree(folder, ignore_errors=True)


def campaign(count: int, seed: int, seconds: float = float("inf")) -> tuple[Counter[str], list[tuple[int, Input, str]]]:
    """Inputs 0 to ``count``: how many of each kind, and (number, input, what was wrong) of each failure."""
    kinds: Counter[str] = Counter()
    failures: list[tuple[int, Input, str]] = []
    end = time.monotonic() + seconds
    with folder_of_inputs():
        for i in range(count):
            if time.monotonic() > end:
                break
            given = one_input(seed, i)
            kinds[given.kind] += 1
            if wrong := fault(given):
                failures.append((i, given, wrong))
    return kinds, failures


def main() -> int:
    parser = argparse.ArgumentParser(description="Mutated input to the command line.")
    parser.add_argument("count", type=int, nargs="?", default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="folder of the inputs that failed")
    args = parser.parse_args()
    keep = args.keep.absolute()
    kinds, failures = campaign(args.count, args.seed, args.seconds)
    for i, given, wrong in failures:
        keep.mkdir(parents=True, exist_ok=True)
        record = {"seed": args.seed, "input": i, "kind": given.kind, "words": given.words, "wrong": wrong}
        (keep / f"{args.seed}-{i}.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
        print(f"{i} {given.kind}: {wrong}".encode("ascii", "backslashreplace").decode())
    print(f"{sum(kinds.values())} inputs, seed {args.seed}, {len(failures)} failures; {dict(kinds)}")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
