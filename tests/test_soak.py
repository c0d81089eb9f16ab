"""`scripts/soak.py`: what it calls growth, and a soak of seconds with a stop and a second part."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from warm_start import warm_python

SCRIPT = Path(__file__).parent.parent / "scripts" / "soak.py"


@pytest.fixture(scope="module")
def soak():
    spec = importlib.util.spec_from_file_location("soak", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["soak"]


def readings(soak, part=0, hours=2, growth_mb=0.0, files=8, slower=0.0):
    """A reading each minute: 600 MB, 20 steps of 1 s of a core and 1 kB."""
    first = soak.Reading(part, 0.0, 0, 0.0, 600_000_000, 20_000_000, 2, 8, 4, 0, 10**7)
    found = [first]
    for minute in range(1, hours * 60):
        last = found[-1]
        late = minute > hours * 40
        found.append(
            replace(
                last,
                seconds=minute * 60.0,
                steps=last.steps + 20,
                cpu_seconds=last.cpu_seconds + 20 * (1 + slower * late),
                trainer_bytes=first.trainer_bytes + int(growth_mb * 1e6 * minute / 60),
                files=files if late else 8,
                record_bytes=last.record_bytes + 20_000,
                folder_bytes=last.folder_bytes + 20_000,
            )
        )
    return found


def test_a_run_that_does_not_grow_keeps_its_promises(soak, capsys):
    found = soak.summary([*readings(soak), *readings(soak, part=1)], warm_up=1200)
    assert [part["part"] for part in found["parts"]] == [0, 1]
    assert found["hours"] == pytest.approx(4, abs=0.1)
    assert found["parts"][0]["folder_bytes_per_step"] == pytest.approx(1000)
    assert found["parts"][0]["record_bytes_per_step_last"] == pytest.approx(1000)
    assert soak.broken({**found, "report_seconds": 3.0}) == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"growth_mb": 1.5}, "memory of the trainer grows by 1.50 MB an hour"),
        ({"files": 20}, "open files from 8 to 20"),
        ({"slower": 0.2}, "CPU seconds a step from 1.000 to 1.200"),
    ],
)
def test_what_grows_is_named(soak, capsys, change, sentence):
    found = soak.summary(readings(soak, **change), warm_up=1200)
    assert [line.endswith(sentence) for line in soak.broken({**found, "report_seconds": 3.0})] == [True]
    assert sentence in capsys.readouterr().err


def test_a_slow_report_is_named(soak):
    assert soak.broken({"parts": [], "report_seconds": 31.0}) == ["the report took 31 s"]


@pytest.mark.slow
def test_a_soak_of_seconds_goes_on_in_a_second_part(soak, here, monkeypatch):
    """Too short to say what grows; it runs, stops with a checkpoint, goes on and counts both parts."""
    monkeypatch.chdir(here)
    words = ["--task", "own.tasks:letters", "--model", "tiny", "--save-steps", "10", "--eval-steps", "0"]
    flags = ["--hours", "0.001", "--warm-up", "0", "--every", "0.3", "--json", "soaked.json", "--", *words]
    monkeypatch.setattr(sys, "argv", ["soak.py", "soaked", *flags])
    assert soak.main() in (0, 1)  # 1: it grows, as in every warm-up
    monkeypatch.setattr(sys, "executable", warm_python())
    assert soak.main() in (0, 1)
    found = json.loads((here / "soaked.json").read_text())
    lines = [json.loads(line) for line in (here / "soaked" / "soak.jsonl").read_text().splitlines()]
    assert {line["part"] for line in lines} == {0, 1}
    assert all(line["workers"] == 2 and line["trainer_bytes"] > 10**8 for line in lines if line["part"] == 0)
    assert [part["part"] for part in found["parts"]] == [0, 1] and 0 < found["report_seconds"] < 30
    steps = [line["steps"] for line in lines]
    assert steps == sorted(steps) and steps[-1] > 2
