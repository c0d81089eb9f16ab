"""The record of numbers that a rewrite must keep: what its comparison lets pass and what it does not."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import identity_record

NUMBERS = torch.tensor([1.0, -3.0, 4.0], dtype=torch.float64)
RECORD = {
    "core/a/weights": NUMBERS.clone(),
    "core/a/covariance": NUMBERS.float(),
    "core/a/refusal": torch.tensor(list(b"no"), dtype=torch.uint8),
    "metrics/a/log cov/weighted": torch.tensor(1e-17, dtype=torch.float64),
    "stock/plain/step 1 gradient": NUMBERS.float(),
    "stock tokens/plain/step 1 tokens c": NUMBERS.float(),
    "gaussian/plain/log loss": torch.tensor([1e-6, float("nan")], dtype=torch.float64),
}
# what changes, by how much, and whether that passes
CHANGES = [
    ("core/a/weights", 3e-12, True),
    ("core/a/weights", 1e-11, False),
    ("core/a/covariance", 2.0**-22, True),  # a last bit at 4
    ("core/a/covariance", 2.0**-20, False),
    ("core/a/refusal", 1, False),
    ("metrics/a/log cov/weighted", 1e-16, True),
    ("metrics/a/log cov/weighted", 1e-11, False),
    ("stock/plain/step 1 gradient", 2.0**-22, False),
    ("stock tokens/plain/step 1 tokens c", 2.0**-22, True),
    ("gaussian/plain/log loss", 5e-7, True),
    ("gaussian/plain/log loss", 5e-6, False),
]


def compare(tmp_path, changed, *options):
    files = [str(tmp_path / name) for name in ("a.safetensors", "b.safetensors")]
    for file, record in zip(files, (RECORD, changed), strict=True):
        save_file(record, file)
    return identity_record.main(["compare", *files, *options])


def test_a_record_is_itself(tmp_path, capsys):
    assert compare(tmp_path, RECORD) == 0
    assert "core: 3 of 3 entries equal to the last bit\n" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "by", "passes"), CHANGES)
def test_what_passes(tmp_path, capsys, name, by, passes):
    moved = RECORD[name] + torch.tensor(by).to(RECORD[name].dtype)
    assert not torch.equal(moved, RECORD[name])
    assert compare(tmp_path, RECORD | {name: moved}) == (0 if passes else 1)
    assert (f"{name}: relative difference" in capsys.readouterr().out) is not passes


def test_a_limit_can_be_given(tmp_path):
    moved = RECORD | {"stock/plain/step 1 gradient": RECORD["stock/plain/step 1 gradient"] * 1.001}
    assert compare(tmp_path, moved, "--limit", "stock=0.01") == 0
    assert compare(tmp_path, moved, "--limit", "core=0.01") == 1


@pytest.mark.parametrize(
    "other", [NUMBERS.float(), NUMBERS[:2].clone(), torch.tensor([1.0, float("nan"), 4.0], dtype=torch.float64)]
)
def test_another_dtype_shape_or_nan_is_a_difference(tmp_path, other):
    assert compare(tmp_path, RECORD | {"core/a/weights": other}) == 1


def test_missing_entries_are_named(tmp_path, capsys):
    fewer = {name: values for name, values in RECORD.items() if name != "core/a/weights"} | {"new/x/y": NUMBERS}
    assert compare(tmp_path, fewer) == 1
    said = capsys.readouterr().out
    assert "only in the first record: core/a/weights" in said and "only in the second record: new/x/y" in said


def test_what_is_recorded_without_training_is_the_same_twice(tmp_path):
    files = [str(tmp_path / f"{number}.safetensors") for number in range(2)]
    for file in files:
        assert identity_record.main(["write", file, "--parts", "core", "metrics", "engines"]) == 0
    first, second = map(load_file, files)
    assert first.keys() == second.keys()
    assert all(identity_record.difference(name, first[name], second[name]) == (0.0, 0.0) for name in first)
    assert {name.partition("/")[0] for name in first} == {"core", "metrics", "engines"}


def test_the_runs_differ():
    runs = list(identity_record.planned_runs())
    assert len({(section, case) for section, case, _ in runs}) == len(runs)
    assert len({repr(sorted(options.items(), key=str)) for _, _, options in runs}) == len(runs)
