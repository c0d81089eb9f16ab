"""Where and how much at once models are evaluated, with a stand-in for the accelerator: the meta device."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_model

import covgrpo.evaluation
import covgrpo.hardware
from covgrpo.cli import main
from covgrpo.runs.held_out import HeldOut
from covgrpo.runs.options import TrainOptions
from covgrpo.runs.record.folder import RunFolder
from covgrpo.runs.train import _Session
from covgrpo.tasks import PromptFormat

META = torch.device("meta")


def device_of(model):
    return next(model.parameters()).device


def test_the_best_device_is_the_accelerator_where_one_is_available(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: META)
    assert covgrpo.hardware.best_device() == META
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert covgrpo.hardware.best_device() == torch.device("cpu")


def test_eval_measures_on_the_accelerator(monkeypatch, tiny_folder, capsys):
    seen = []

    def evaluate(model, *args):
        seen.append(device_of(model))
        raise KeyboardInterrupt

    monkeypatch.setattr(covgrpo.hardware, "best_device", lambda: META, raising=False)
    monkeypatch.setattr(covgrpo.evaluation, "evaluate", evaluate)
    assert main(["eval", str(tiny_folder), "--task", "addition", "--problems", "2"]) == 130
    assert seen == [META]


@dataclasses.dataclass
class Measuring:
    """In place of the held-out problems: says where the model was."""

    seen: list

    def evaluate(self, model, progress):
        self.seen.append(device_of(model))
        return {"accuracy": 0.5}


def test_before_is_measured_where_the_trainer_trains(tmp_path):
    """As after: in the precision that the device has."""
    options = TrainOptions(task="addition", evaluate=True, output=str(tmp_path / "run"))
    run = RunFolder.create(str(tmp_path / "run"), {"options": {}})
    session = _Session(options, None, None, SimpleNamespace(device=META), run, None)
    measuring = Measuring([])
    assert session._evaluate("before", tiny_model(), measuring) == {"accuracy": 0.5}
    assert measuring.seen == [META]


@pytest.mark.parametrize("size", [7, 256])
def test_completions_at_once_are_an_option_of_the_run(size):
    options = TrainOptions(task="addition", eval_batch_size=size)
    how = HeldOut(options, [], [], PromptFormat("plain", None, 0), None, None)._how()
    assert how["settings"].batch_size == size
