"""`covgrpo demo`: the recipe in the package, a run folder of its own each time, every flag of train.

`test_dist.py` runs it, and a report of it, from an installed wheel.
"""

import json
from pathlib import Path

import pytest

from covgrpo.cli import command_line, main, train
from covgrpo.cli.demo import REASONING, RECIPE
from covgrpo.runs.options import TrainOptions
from covgrpo.yaml_text import read_yaml

ROOT = Path(__file__).parent.parent
SMALL = ["--model", "../tiny", "--steps", "1", "--prompts-per-step", "2", "--num-generations", "4", "--no-evaluate"]


@pytest.mark.parametrize("recipe", [RECIPE, REASONING])
def test_the_recipe_lies_in_the_package_and_is_the_one_that_a_clone_shows(recipe):
    assert (ROOT / "recipes" / recipe.name).read_bytes() == recipe.read_bytes()
    assert (ROOT / "src" / "covgrpo").resolve() in recipe.resolve().parents


def test_make_demo_is_this_command():
    recipe = (ROOT / "Makefile").read_text().partition("\ndemo:")[2].splitlines()[1]
    assert recipe == "\t$(BIN)/covgrpo demo"


def test_every_flag_of_train_is_taken_but_the_config_and_the_help_shows_the_recipe(capsys):
    flags = {}
    for command in ("train", "demo"):
        with pytest.raises(SystemExit):
            command_line().parse_args([command, "--help"])
        flags[command] = {
            word.strip("[],:") for word in capsys.readouterr().out.split() if word.startswith(("[--", "--"))
        }
    assert flags["train"] ^ flags["demo"] == {"--config", "--reasoning"}
    with pytest.raises(SystemExit):
        command_line().parse_args(["demo", "--help"])
    assert "steps: 45" in capsys.readouterr().out


def test_the_settings_are_the_recipes_and_flags_win(monkeypatch):
    seen = []
    monkeypatch.setattr(train, "_train", lambda options, args: seen.append(options) or 0)
    assert main(["demo", "--seed", "3", "--steps", "7", "--output", "x"]) == 0
    recipe = read_yaml(str(RECIPE))
    assert (recipe["model"], recipe["steps"]) == ("smollm2-135m", 45)
    assert seen == [TrainOptions(**{**recipe, "seed": 3, "steps": 7, "output": "x"})]


def test_reasoning_trains_the_model_of_the_package_on_traces(work, capsys):
    words = ["demo", "--reasoning", "--steps", "1", "--no-evaluate", "--prompts-per-step", "2"]
    assert main([*words, "--num-generations", "4", "--max-completion-length", "64"]) == 0
    assert "covgrpo report runs/reasoning" in capsys.readouterr().out
    (record,) = [json.loads(line) for line in Path("runs/reasoning/metrics.jsonl").read_text().splitlines()]
    assert 0.1 < record["entropy"] < 0.6 and record["completions/mean_length"] > 20
    samples = [json.loads(line) for line in Path("runs/reasoning/samples.jsonl").read_text().splitlines()]
    assert all("=" in sample["completion"] for sample in samples), "a trace tries sums"


@pytest.mark.parametrize(
    ("there", "given", "chosen"),
    [
        ([], [], "runs/demo"),
        (["demo"], [], "runs/demo-2"),
        (["demo", "demo-2"], [], "runs/demo-3"),
        (["demo", "demo-2"], ["--resume"], "runs/demo-2"),
        ([], ["--resume"], "runs/demo"),
        (["demo"], ["--output", "mine"], "mine"),
        (["demo", "reasoning"], ["--reasoning"], "runs/reasoning-2"),
    ],
)
def test_the_folder_is_the_first_free_one_and_to_go_on_the_last_taken(work, monkeypatch, there, given, chosen):
    for name in there:
        Path("runs", name).mkdir(parents=True)
    seen = []
    monkeypatch.setattr(train, "run", lambda args: seen.append((args.output, args.words)) or 0)
    assert main(["demo", *given]) == 0
    words = ["demo", *given]
    assert seen == [(chosen, words if "--output" in given else [*words, "--output", chosen])]


def test_several_processes_are_to_be_told_one_folder(work, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["demo", *SMALL]) == 2
    assert capsys.readouterr().err == "covgrpo: covgrpo demo on several processes needs --output.\n"
