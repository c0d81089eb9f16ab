"""scripts/move_target.py tells a stopped run's controller another target, and nothing else."""

import json
import runpy
from pathlib import Path

import pytest

from covgrpo.errors import UserError

SCRIPT = Path(__file__).parents[1] / "scripts/move_target.py"
move_target = runpy.run_path(str(SCRIPT))["move_target"]


@pytest.fixture
def state(tmp_path, monkeypatch):
    """Path of a checkpoint's state; the run folder's own check of checkpoints is not what is tested."""
    checkpoint = tmp_path / "checkpoint-150"
    checkpoint.mkdir()
    monkeypatch.setattr("covgrpo.runs.record.folder.RunFolder.latest_checkpoint", lambda self: checkpoint)
    return checkpoint / "covgrpo_state.json"


def test_the_target_moves_and_nothing_else(tmp_path, state):
    before = {"micro_batches_done": 150, "entropy_hold": {"controller": {"target": 0.3, "kappa": 1.5}, "reached": []}}
    state.write_text(json.dumps(before))
    assert move_target(tmp_path, 0.8) == pytest.approx((0.3, 0.24))
    after = json.loads(state.read_text())
    assert after["entropy_hold"]["controller"].pop("target") == pytest.approx(0.24)
    before["entropy_hold"]["controller"].pop("target")
    assert after == before


@pytest.mark.parametrize(
    "found", [{}, {"entropy_hold": {"controller": {"target": None}}}, {"entropy_hold": {"controller": {}}}]
)
def test_a_run_without_a_target_is_refused_and_left_as_it_was(tmp_path, state, found):
    state.write_text(json.dumps(found))
    with pytest.raises(UserError, match="holds no target"):
        move_target(tmp_path, 0.8)
    assert json.loads(state.read_text()) == found


def test_a_run_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no checkpoint"):
        move_target(tmp_path, 0.8)


def test_a_run_that_was_given_its_target_is_refused(tmp_path, state):
    """It would take that target again when it goes on."""
    state.write_text(json.dumps({"entropy_hold": {"controller": {"target": 0.3}}}))
    (tmp_path / "config.json").write_text(json.dumps({"options": {"weighting_kwargs": {"target": 0.3}}}))
    with pytest.raises(UserError, match="was given its target in weighting_kwargs"):
        move_target(tmp_path, 0.8)
