"""Bad input of every command: one sentence, exit code 2, and nothing left behind."""

from pathlib import Path

import pytest
from bad_files import CONFIGS, CONFIGS_OF_TASKS, LINES
from bad_inputs import METHODS, PLAN, TRAIN, WORDS
from bad_inputs_of_others import (
    BENCH,
    COMPARE,
    COMPLETIONS,
    EVAL,
    FILES,
    REPORT,
    STUDIES,
    TABLE,
    TABLES,
)
from cli_cases import SMALL, command, refused


def dry(*words: str) -> list[str]:
    return ["train", "--dry-run", "--task", "addition", "--model", "../tiny", *SMALL, *words]


# Name -> (command line, a part of the sentence, name and content of a file of its own).
CASES: dict[str, tuple[list[str], str, str, str | bytes]] = {
    f"{kind}: {name}": (build(words), sentence, "", "")
    for kind, build, rows in (
        ("covgrpo", list, WORDS),
        ("train", lambda words: command(*words), TRAIN),
        ("plan", lambda words: dry(*words), PLAN),
        ("method", lambda words: dry(*words), METHODS),
        ("eval", lambda words: ["eval", *words], EVAL),
        ("compare", lambda words: ["compare", *words], COMPARE),
        ("report", lambda words: ["report", *words], REPORT),
        ("bench", lambda words: ["bench", *words], BENCH),
        ("table", lambda words: ["table", *words], TABLE),
    )
    for name, (words, sentence) in rows.items()
} | {
    f"{kind}: {name}": (words, sentence, file, text)
    for kind, words, file, texts in (
        ("config", dry("--config", "c.yaml"), "c.yaml", CONFIGS),
        ("config of a task", ["train", "--dry-run", "--config", "c.yaml"], "c.yaml", CONFIGS_OF_TASKS),
        ("lines", dry("--task", "jsonl:p.jsonl"), "p.jsonl", LINES),
        ("completions", ["eval", "--benchmark", "../good.jsonl", "--completions", "c.jsonl"], "c.jsonl", COMPLETIONS),
        ("study", ["compare", "s.yaml", "--list"], "s.yaml", STUDIES),
        ("result", ["table", "r.json"], "r.json", TABLES),
    )
    for name, (text, sentence) in texts.items()
}


@pytest.fixture(autouse=True)
def plain_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    """No package that an option may need is installed, whatever this environment has."""
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", list)
    monkeypatch.setattr("transformers.utils.is_liger_kernel_available", bool)
    monkeypatch.setattr("transformers.integrations.deepspeed.is_deepspeed_available", bool)


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, sentence, own, content = CASES[name]
    for path, text in FILES.items():
        target = work.parent / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    if own:
        (work / own).write_bytes(content if isinstance(content, bytes) else content.encode())
    around = sorted(work.parent.rglob("*"))
    assert sentence in refused(capsys, words)
    assert sorted(work.parent.rglob("*")) == around  # nothing is left


def test_there_are_many_kinds() -> None:
    assert len(CASES) >= 226
