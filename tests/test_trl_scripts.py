"""A TRL script of a user's own: its command line and its configuration file."""

import json

import pytest
from trl import TrlParser

from covgrpo.trl import CovGRPOConfig

CLIP = ["--weighting", "clip_cov", "--epsilon", "1e6"]


def parsed(*words):
    return TrlParser([CovGRPOConfig]).parse_args_and_config(["--output_dir", "out", *words])[0]


@pytest.mark.parametrize("flag", ["--weighting_kwargs", "--weighting-kwargs"])
def test_hyperparameters_of_the_weighting_on_the_command_line(flag):
    args = parsed(*CLIP, flag, '{"ratio": 0.001, "low": 0.5}')
    assert args.weighting_kwargs == {"ratio": 0.001, "low": 0.5}
    assert parsed(*CLIP).weighting_kwargs is None


def test_hyperparameters_of_the_weighting_in_the_configuration_file(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("weighting: clip_cov\nepsilon: 1e6\nweighting_kwargs: {ratio: 0.001}\n")
    assert parsed("--config", str(file)).weighting_kwargs == {"ratio": 0.001}
    # a flag wins over the file
    assert parsed("--config", str(file), "--weighting_kwargs", '{"ratio": 0.5}').weighting_kwargs == {"ratio": 0.5}


@pytest.mark.parametrize("text", ["ratio=0.001", '{"ratio": 0.001', "[0.001]", "0.001", '"ratio"', "", "[" * 100_000])
def test_hyperparameters_that_are_no_object(text):
    with pytest.raises(ValueError, match=r"^weighting_kwargs is .*; it must be a mapping, or as text a JSON object"):
        CovGRPOConfig("out", weighting="clip_cov", weighting_kwargs=text)


@pytest.mark.parametrize("options", [{}, {"num_iterations": 1, "gradient_accumulation_steps": 4}])
def test_a_penalty_that_never_acts_is_said(options, caplog):
    CovGRPOConfig("out", weighting="kl_cov", epsilon=1e6, **options)
    (record,) = caplog.records
    assert record.message.startswith("kl_cov will do nothing: its penalty is on what the second update of a batch")
    assert record.message.count(".") == 1 and record.levelname == "WARNING"


@pytest.mark.parametrize(
    "options",
    [
        {"weighting": "kl_cov", "epsilon": 1e6, "num_iterations": 2},
        {"weighting": "kl_cov", "epsilon": 1e6, "steps_per_generation": 4},
        {"weighting": "clip_cov", "epsilon": 1e6},
        {},
    ],
)
def test_nothing_is_said_where_it_acts(options, caplog):
    CovGRPOConfig("out", **options)
    assert caplog.records == []


def test_a_configuration_survives_its_own_json():
    args = parsed(*CLIP, "--weighting_kwargs", '{"ratio": 0.001}')
    assert json.loads(args.to_json_string())["weighting_kwargs"] == {"ratio": 0.001}
