"""A short form of scripts/fuzz.py: inputs of a fixed seed end in success or in one sentence."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import fuzz


def test_inputs_of_a_fixed_seed_end_well() -> None:
    kinds, failures = fuzz.campaign(200, seed=24)
    assert [(i, given.words, wrong) for i, given, wrong in failures] == []
    assert len(kinds) >= 9, "nearly every kind was among them"


def test_an_input_is_the_same_each_time() -> None:
    assert [fuzz.one_input(3, i) for i in range(50)] == [fuzz.one_input(3, i) for i in range(50)]


@pytest.mark.parametrize(
    ("does", "wrong"),
    [
        (lambda words: 1 / 0, "ZeroDivisionError"),
        (lambda words: 1, "exit code 1"),
        (lambda words: sys.stderr.write("covgrpo: a\nb\n") and 2, "not one sentence"),
        (lambda words: sys.stderr.write("Traceback\n") and 0, "Traceback"),
    ],
)
def test_what_is_a_failure(does, wrong, monkeypatch) -> None:
    monkeypatch.setattr(fuzz, "covgrpo", does)
    with fuzz.folder_of_inputs():
        assert fuzz.fault(fuzz.Input("flags", [])).startswith(wrong)


def test_a_hang_is_a_failure(monkeypatch) -> None:
    def hang(words):
        while True:
            pass

    monkeypatch.setattr(fuzz, "covgrpo", hang)
    monkeypatch.setattr(fuzz, "LIMIT_S", 1)
    with fuzz.folder_of_inputs():
        assert fuzz.fault(fuzz.Input("flags", [])) == "more than 1 s"
