"""What covgrpo sets by itself is written as the newest libraries want it: a script with our defaults warns of nothing.

TRL 1.16 reads and calls transformers' old names for checkpointing by itself, also where a script never names them.
"""

import dataclasses
import inspect
import warnings

import pytest
import trl.models.utils as trl_models
from trl_runs import BASE, build

from covgrpo.trl import CovGRPOConfig, CovGRPOTrainer

pytestmark = pytest.mark.filterwarnings("error::FutureWarning")

DECIDED_HERE = {"gradient_checkpointing", "use_cpu", "bf16"}


@pytest.fixture
def without_given(monkeypatch):
    """The options of ``build`` without those that covgrpo decides by the machine."""
    for name in DECIDED_HERE:
        monkeypatch.delitem(BASE, name)


@pytest.mark.slow
@pytest.mark.usefixtures("without_given")
@pytest.mark.parametrize("options", [{}, {"num_iterations": 2}, {"fast_path": False}])
def test_a_training_by_our_defaults_brings_no_future_warning(tmp_path, options):
    trainer = build(CovGRPOTrainer, CovGRPOConfig, tmp_path, max_steps=2, **options)
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("use_cpu", [True, False])
def test_checkpointing_by_default_is_set_under_the_name_that_lasts(tmp_path, use_cpu):
    config = CovGRPOConfig(str(tmp_path), use_cpu=use_cpu, bf16=False)
    assert config.gradient_checkpointing is (not use_cpu)
    if "activation_checkpointing" in {field.name for field in dataclasses.fields(config)}:  # transformers 5.23 on
        assert config.activation_checkpointing is config.gradient_checkpointing


def test_the_name_that_lasts_wins_over_the_default(tmp_path):
    if "activation_checkpointing" not in {field.name for field in dataclasses.fields(CovGRPOConfig)}:
        pytest.skip("transformers before 5.23 knows the old name alone")
    config = CovGRPOConfig(str(tmp_path), activation_checkpointing=True, use_cpu=True)
    assert config.gradient_checkpointing is True


def test_a_user_who_writes_the_old_name_is_told(tmp_path):
    if "activation_checkpointing" not in {field.name for field in dataclasses.fields(CovGRPOConfig)}:
        pytest.skip("transformers before 5.23 knows the old name alone")
    with pytest.warns(FutureWarning, match="activation_checkpointing"):
        CovGRPOConfig(str(tmp_path), gradient_checkpointing=True)


@pytest.mark.usefixtures("without_given")
def test_only_what_trl_itself_asks_is_silenced(tmp_path):
    build(CovGRPOTrainer, CovGRPOConfig, tmp_path)
    with pytest.raises(FutureWarning, match="something else"):
        warnings.warn("something else is deprecated", FutureWarning, stacklevel=1)


def test_trl_still_asks_by_the_old_names():
    """Once it does not, `quiet_about_trl` in covgrpo/trl/old_names.py can go."""
    assert ".is_gradient_checkpointing" in inspect.getsource(trl_models)
