"""The inputs of scripts/fuzz.py: files and words that work, and what is done to them.

Input i of a seed is always the same. Kinds: a file that a command reads (options, problems, completions, a run's
records, a study and its records, a result), or its words (flags of all commands, options of runs, weightings with their
hyperparameters, task specs). Files are changed byte by byte, and JSON and YAML also value by value, so that what is
still well formed holds what nobody expects there.
"""

import dataclasses
import functools
import json
import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from bad_files import CONFIGS, GOOD_LINE, LINES
from bad_inputs import METHODS, PLAN, TRAIN, WORDS
from bad_inputs_of_others import (
    BENCH,
    COMPARE,
    COMPLETIONS,
    EVAL,
    FILES,
    REPORT,
    RESULT,
    STUDIES,
    TABLE,
    TABLES,
)
from fuzz_changes import ODD_TEXTS, ODD_VALUES, as_bytes, changed_often, mutated, near
from report_cases import make_run
from study_cases import STUDY, made_study, write_records

from covgrpo.core.weighting import WEIGHTINGS
from covgrpo.runs.options import TrainOptions
from covgrpo.trl.methods import METHODS as ALL_METHODS

DRY = ["train", "--dry-run", "--json", "--model", "tiny", "--steps", "1", "--num-generations", "4"]
SMALL = ["--model", "tiny", "--output", "out", "--steps", "1", "--num-generations", "4", "--train-problems", "9"]
STEPS = 3
CONFIG = "task: addition\nlearning_rate: 1.0e-5\nweighting: gaussian\nseed: 3\ntrl: {top_k: 5}\n"
SPECS = (
    *("addition?max=9", "addition:?min=3&eval_fraction=0.5", "countdown:?numbers=3&style=compact", "digits:reverse"),
    *("digits:sort?length=4", "reasoning_gym:chain_sum?min_terms=2", "reasoning_gym:spell_backward?max_word_len=5"),
    *('reasoning_gym:basic_arithmetic?operators=["+"]', "jsonl:p.jsonl?question=problem&answer=answer", "hub:a/b"),
    *("jsonl:p.jsonl?split=all", "own.tasks:letters?level=3", "reasoning_gym:maze", "reasoning_gym:graph_color"),
)


@dataclass(frozen=True)
class Input:
    """Words of a command line, and the content of one of the files that stand in the current folder."""

    kind: str
    words: list[str]
    file: str = ""
    content: bytes = b""


def write_good_files(folder: Path) -> None:
    """Write every file that the commands may read below ``folder``."""
    for name, text in {**FILES, "p.jsonl": GOOD_LINE, "c.yaml": CONFIG, "c.jsonl": FILES["done.jsonl"]}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "r.json").write_text(RESULT, encoding="utf-8")
    (folder / "run/metrics.jsonl").unlink()
    (folder / "run").rmdir()
    make_run(folder / "run", steps=STEPS)
    made_study(folder, STUDY, "s")
    study = made_study(folder, STUDY.replace("[3, 4, 5]", "[3, 4]"), "kept")
    write_records(folder / "kept", study, {(s.regime, s.method, s.seed): 0.5 for s in study.runs})
    (folder / "own").mkdir(exist_ok=True)
    (folder / "own/__init__.py").touch()
    (folder / "own/tasks.py").write_text("def letters():\n    return 3\n", encoding="utf-8")


def _record() -> dict[str, Any]:
    """A record of a study's run, as ``write_records`` writes it."""
    from study_cases import made_record

    options = {"task": "addition", "threads": 1, "steps": 20, "num_iterations": 4, "method": "grpo", "seed": 3}
    options |= {"eval_problems": 4, "eval_steps": 10, "eval_samples": 16, "eval_steps_samples": 2}
    record = made_record("hard", "grpo", 3, 0.5, options={**options, "eval_temperatures": [0.6, 1.0]})
    return {"version": 1, "study": "kept", **vars(record)}


def _rows(good: str, rows: dict[str, tuple[str | bytes, str]]) -> list[bytes]:
    texts = [as_bytes(text) for text, _ in rows.values()]
    return [good.encode()] * max(1, len(texts) // 2) + [text for text in texts if len(text) < 100_000]


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _yaml(value: Any) -> bytes:
    return as_bytes(yaml.safe_dump(value, sort_keys=False))


def _lines(rng: random.Random, records: list[Any]) -> bytes:
    """JSON lines, of which one or more are changed by value."""
    for _ in range(rng.choice((1, 1, 2))):
        place = rng.randrange(len(records))
        records = [*records[:place], changed_often(rng, records[place]), *records[place + 1 :]]
    return b"".join(_json(record) + b"\n" for record in records)


@functools.cache
def _good_records() -> dict[str, list[Any]]:
    """The records of a run with ``STEPS`` steps, by file."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder) / "run", steps=STEPS)
        return {
            path.name: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            for path in run.iterdir()
        }


def _options(rng: random.Random) -> dict[str, Any]:
    """Options of a run, some of them at their defaults and some at an odd value."""
    fields = [field for field in dataclasses.fields(TrainOptions) if field.name != "task"]
    found: dict[str, Any] = {"task": rng.choice(SPECS), "model": "tiny"}
    for field in rng.sample(fields, rng.randint(0, 5)):
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
        found[field.name] = default if rng.random() < 0.3 else near(rng, default)
    return found


def _file(name: str, words: list[str], texts: list[bytes], build: Callable[[random.Random], bytes]) -> Any:
    """A maker of inputs whose file is changed by its bytes or by its values, each half of the time."""

    def make(rng: random.Random, kind: str) -> Input:
        whole = build(rng) if rng.random() < 0.6 else mutated(rng, rng.choice(texts))
        return Input(kind, list(words), name, whole)

    return make


def _record_file(name: str) -> Any:
    """A maker of a run folder in which one file is changed."""
    words = ["report", "run", "--output", "r.html", "--markdown", "r.md"]

    def build(rng: random.Random) -> bytes:
        return _lines(rng, _good_records()[name])

    good = b"".join(_json(record) + b"\n" for record in _good_records()[name][:4])
    return _file(f"run/{name}", words, [good], build)


def _studies(rng: random.Random) -> bytes:
    return _yaml(changed_often(rng, {**yaml.safe_load(STUDY), "sweep": {"learning_rate": [1e-5]}, "margin": 0.1}))


def _problems(rng: random.Random) -> bytes:
    return _lines(rng, [{"problem": f"{i}+1?", "answer": str(i + 1), "id": i} for i in range(3)])


def _done(rng: random.Random) -> bytes:
    return _lines(rng, [{"id": "good/1", "completion": text} for text in ("2", "\\boxed{3}", "The answer is 2.")])


def _word(rng: random.Random, word: str) -> str:
    """A mutated word that a shell could pass: without a zero byte."""
    return os.fsdecode(mutated(rng, os.fsencode(word), 20_000).replace(b"\0", b""))


def _odd_word(rng: random.Random) -> str:
    value = rng.choice(ODD_VALUES)
    text = rng.choice(ODD_TEXTS) if rng.random() < 0.5 else value if isinstance(value, str) else json.dumps(value)
    return os.fsdecode(as_bytes(text).replace(b"\0", b"")[:20_000])


# Command -> what stands before the words of a row, and the rows of its bad input.
COMMANDS: dict[str, tuple[list[str], list[list[str]]]] = {
    name: (before, [[word.removeprefix("../") for word in words] for words, _ in rows.values()])
    for name, before, rows in (
        ("none", [], WORDS),
        ("train", ["train", "--task", "addition", *SMALL], TRAIN),
        ("plan", [*DRY, "--task", "addition"], PLAN),
        ("eval", ["eval"], EVAL),
        ("compare", ["compare"], COMPARE),
        ("report", ["report"], REPORT),
        ("bench", ["bench"], BENCH),
        ("table", ["table"], TABLE),
    )
}
COMMANDS["report"][1].extend((["run"], ["run", "--title", "x", "--output", "a.html"], ["run=a", "run=b"]))
COMMANDS["compare"][1].extend((["s.yaml", "--list"], ["kept.yaml", "--no-run", "--report"], ["s.yaml", "--only", "a"]))
COMMANDS["none"][1].extend((["tasks", "chain"], ["models", "--json"], ["demo", "--dry-run"], ["demo", "--seed", "3"]))


def _option_words(rng: random.Random) -> list[str]:
    """Flags of options with values near their defaults or odd ones."""
    words = []
    for name, value in _options(rng).items():
        if name == "model":
            continue
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, dict):
            for key, entry in value.items():
                words += [flag, f"{key}={entry if isinstance(entry, str) else json.dumps(entry)}"]
        elif isinstance(value, list):
            words += [flag, *(item if isinstance(item, str) else json.dumps(item) for item in value)]
        else:
            words += [flag, value if isinstance(value, str) else json.dumps(value)]
    return [os.fsdecode(as_bytes(word).replace(b"\0", b"")[:20_000]) for word in words]


def _given(rng: random.Random, kind: str) -> Input:
    return Input(kind, [*rng.choice((DRY, ["train", *SMALL], ["demo", *DRY[1:]])), *_option_words(rng)])


def _flags(rng: random.Random, kind: str) -> Input:
    """A row of bad input, or a good one, with words changed, dropped, added or swapped."""
    before, rows = COMMANDS[rng.choice(list(COMMANDS))]
    words = [*before, *rng.choice(rows)]
    for _ in range(rng.randint(1, 3)):
        place = rng.randint(0 if rng.random() < 0.1 else min(len(before), len(words)), len(words))
        how = rng.random()
        if how < 0.35 and words:
            words[place % len(words)] = _word(rng, words[place % len(words)])
        elif how < 0.6 and words:
            words[place % len(words)] = _odd_word(rng)
        elif how < 0.75:
            words.insert(place, _odd_word(rng))
        elif how < 0.85:
            words.insert(place, "--" + rng.choice(dataclasses.fields(TrainOptions)).name.replace("_", "-"))
        elif words:
            del words[place % len(words)]
    return Input(kind, words or [""])


def _weighting(rng: random.Random, kind: str) -> Input:
    """A method or a weighting with hyperparameters of its own or of another, at odd values."""
    if rng.random() < 0.4:
        words = [*rng.choice([words for words, _ in METHODS.values()])]
        words[rng.randrange(len(words))] = _word(rng, rng.choice(words))
        return Input(kind, [*DRY, "--task", "addition", *words])
    words = ["--method", rng.choice(list(ALL_METHODS))]
    if rng.random() < 0.5:
        words += ["--weighting", rng.choice([*WEIGHTINGS, "math:pi", "own.tasks:letters"])]
    names = [f.name for w in WEIGHTINGS.values() if dataclasses.is_dataclass(w) for f in dataclasses.fields(w)]
    for _ in range(rng.randint(0, 3)):
        words += ["--weighting-kwargs", f"{rng.choice([*names, 'x'])}={_odd_word(rng)}"]
    if rng.random() < 0.3:
        words += ["--loss-type", rng.choice(("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"))]
    return Input(kind, [*DRY, "--task", "addition", *words])


def _spec(rng: random.Random, kind: str) -> Input:
    spec = rng.choice(SPECS)
    if rng.random() < 0.5:
        name, _, query = spec.partition("?")
        pairs = [f"{part.partition('=')[0]}={_odd_word(rng)}" for part in query.split("&") if part]
        spec = f"{name}?{'&'.join(pairs)}"
    else:
        spec = _word(rng, spec)
    if rng.random() < 0.5:
        return Input(kind, [*DRY, "--task", spec])
    return Input(kind, ["train", "--task", spec, *SMALL])


def _config(rng: random.Random) -> bytes:
    return _yaml(_options(rng))


# Kind -> its share of the inputs, and what makes one.
KINDS: dict[str, tuple[int, Callable[[random.Random, str], Input]]] = {
    "config": (16, _file("c.yaml", [*DRY, "--config", "c.yaml"], _rows(CONFIG, CONFIGS), _config)),
    "problems": (7, _file("p.jsonl", [*DRY, "--task", "jsonl:p.jsonl"], _rows(GOOD_LINE, LINES), _problems)),
    "completions": (
        6,
        _file(
            "c.jsonl",
            ["eval", "--benchmark", "good.jsonl", "--completions", "c.jsonl"],
            _rows(FILES["done.jsonl"], COMPLETIONS),
            _done,
        ),
    ),
    "study": (8, _file("s.yaml", ["compare", "s.yaml", "--list"], _rows(STUDY, STUDIES), _studies)),
    "record": (
        2,
        _file(
            "kept/records/hard--grpo--s3.json",
            ["compare", "kept.yaml", "--no-run", "--report"],
            [_json(_record())],
            lambda rng: _json(changed_often(rng, _record())),
        ),
    ),
    "result": (
        4,
        _file("r.json", ["table", "r.json"], _rows(RESULT, TABLES), lambda rng: _lines(rng, [json.loads(RESULT)])),
    ),
    **{
        name: (4, _record_file(name))
        for name in ("metrics.jsonl", "samples.jsonl", "tokens.jsonl", "histograms.jsonl", "config.json", "eval.json")
    },
    "words": (14, _flags),
    "options": (14, _given),
    "weighting": (10, _weighting),
    "spec": (10, _spec),
}


def one_input(seed: int, i: int) -> Input:
    """Input ``i`` of ``seed``."""
    rng, kind = _begun(seed, i)
    return KINDS[kind][1](rng, kind)


def kind_of(seed: int, i: int) -> str:
    """The kind of input ``i`` of ``seed``."""
    return _begun(seed, i)[1]


def _begun(seed: int, i: int) -> tuple[random.Random, str]:
    rng = random.Random(f"{seed}/{i}")  # noqa: S311 (not cryptography)
    return rng, rng.choices(list(KINDS), [share for share, _ in KINDS.values()])[0]
