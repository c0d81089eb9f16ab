"""The studies that come with the project: their tables are what their kept records say, to the digit."""

import dataclasses
from pathlib import Path

import pytest

from covgrpo.runs.train import plan
from covgrpo.studies import read_records, read_study
from covgrpo.studies.tables import results_csv, results_markdown

STUDIES = Path(__file__).parents[1] / "studies"
KEPT = sorted(path for path in STUDIES.glob("*.yaml") if (path.with_suffix("") / "results.md").exists())


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_study_files_can_be_read(path):
    study = read_study(path)
    assert study.baseline == "grpo"
    ours = {"gaussian", "gaussian_through", "hold_entropy", "entropy_floor"}
    assert ours & {run.options.method for run in study.runs}
    assert study.outcome == "accuracy@0.6"


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_method_of_a_study_can_be_trained(path, monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES.parent))
    for spec in {run.method: run for run in read_study(path).runs}.values():
        found = plan(dataclasses.replace(spec.options, model="smollm2-135m"), 1, "none")
        assert not found.problems, spec.method
        plain = spec.options.method in ("grpo", "clip_higher", "entropy_bonus")
        assert found.facts["weighting"].startswith("none") == plain, spec.method


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_tables_are_rebuilt_from_the_kept_records(path):
    study, folder = read_study(path), path.with_suffix("")
    records = read_records(folder, study.runs)
    assert len(records) == len(list((folder / "records").iterdir())), "a record of no run of the study"
    assert results_markdown(study, records, ["learning_rate"]) == (folder / "results.md").read_text()
    assert results_csv(study, records) == (folder / "results.csv").read_text()


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_kept_records_hold_no_paths_and_no_weights(path):
    for record in (path.with_suffix("") / "records").iterdir():
        text = record.read_text()
        assert len(text) < 100_000 and '"/' not in text, record
