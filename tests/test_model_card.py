"""The card of a finished run, and its way to the hub, which is a stand-in of the hub's client here."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from cli_cases import command, refused
from huggingface_hub import HfApi

from covgrpo.cli import main
from covgrpo.runs.model_card import card, curves_svg
from covgrpo.runs.options import TrainOptions

MESSAGES = [{"role": "user", "content": 'What is 1 + 1, as "text"?'}]
ACCURACY = {"accuracy": 0.75, "low": 0.5, "high": 0.9}
EVALUATION = {"n": 16, "greedy": ACCURACY, "sampled": {**ACCURACY, "accuracy": 0.625}}


def made(after=EVALUATION, before=None, **options):
    return card(TrainOptions(task="addition", **options), before, after, MESSAGES, "org/name", "curves.svg")


def front_matter(text):
    return yaml.safe_load(text.split("---")[1])


def code(text):
    return text.split("```python\n")[1].split("```")[0]


def test_a_card_says_what_the_model_is():
    text = made(before=EVALUATION, seed=3, method="grpo")
    assert front_matter(text)["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "\n# name\n" in text
    assert "| method | `grpo` |" in text and "| task | `addition` |" in text and "seed 3" in text
    interval = "0.750, 95 % interval 0.500 to 0.900"
    assert f"| accuracy, greedy, 16 held-out problems | {interval} (base model: {interval}) |" in text
    assert "| accuracy, sampled, 16 held-out problems | 0.625, 95 % interval 0.500 to 0.900" in text
    assert "![Reward and entropy over the steps](curves.svg)" in text
    compile(code(text), "card", "exec")
    assert json.dumps(MESSAGES[0]["content"]) in code(text)


@pytest.mark.parametrize(
    ("model", "base"), [("org/base", "org/base"), ("./folder/base", None), ("/folder/base", None), ("~/base", None)]
)
def test_only_a_name_on_the_hub_is_linked(model, base):
    found = front_matter(made(model=model))
    assert found.get("base_model") == base and found["library_name"] == "transformers"
    assert "`base`" in made(model="/folder/base") and "/folder" not in made(model="/folder/base")


def test_adapters_and_no_evaluation():
    text = made(after=None, lora_r=8)
    assert front_matter(text)["library_name"] == "peft" and "from peft import AutoPeftModelForCausalLM" in text
    assert "| accuracy | not measured on held-out problems" in text
    compile(code(text), "card", "exec")


@pytest.mark.parametrize(
    "metrics",
    [
        [],
        [{"step": 1}],
        [{"step": 1, "reward": 0.0, "entropy": 0.0}],
        [{"step": s, "reward": s / 9, "entropy": -1.0 / s} for s in range(1, 9)],
        [{"step": 1, "reward": None, "entropy": 2.0}, {"step": 2, "reward": 0.5, "entropy": None}],
    ],
)
def test_the_picture_is_one_whatever_was_recorded(metrics):
    picture = ET.fromstring(curves_svg(metrics))
    lines = [line for line in picture.iter() if line.tag.endswith("polyline")]
    assert len(lines) == 2
    for line, name in zip(lines, ("reward", "entropy"), strict=True):
        points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        assert len(points) == sum(record.get(name) is not None for record in metrics)
        assert all(0 <= x <= 680 and 30 <= y <= 170 for x, y in points)


@pytest.fixture
def hub(monkeypatch):
    """What was asked of the hub."""
    asked = []

    def create_repo(self, repo_id, private=None, exist_ok=False):
        asked.append(("create", repo_id, private, exist_ok))
        return SimpleNamespace(repo_id=repo_id if "/" in repo_id else f"me/{repo_id}")

    def upload_folder(self, repo_id, folder_path, revision=None, commit_message=None):
        asked.append(
            (
                "upload",
                repo_id,
                revision,
                {path.name: path.read_text("latin-1") for path in Path(folder_path).iterdir()},
            )
        )

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(
        HfApi, "create_branch", lambda self, name, branch, exist_ok: asked.append(("branch", name, branch))
    )
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    return asked


@pytest.mark.slow
def test_a_run_is_pushed_with_its_card(work, hub, capsys):
    words = ["--trl", "push_to_hub=true", "--trl", "hub_private_repo=true", "--trl", "hub_revision=second"]
    assert main(command(*words, "--evaluate", "--eval-problems", "4", "--save-steps", "1")) == 0
    create, branch, upload = hub
    assert create == ("create", "out", True, True) and branch == ("branch", "me/out", "second")
    assert upload[:3] == ("upload", "me/out", "second")
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "curves.svg"} <= upload[3].keys()
    assert 'name = "me/out"' in upload[3]["README.md"] and "| accuracy, greedy, 4 held-out" in upload[3]["README.md"]
    assert "uploaded to https://huggingface.co/me/out\n" in capsys.readouterr().out
    beside = Path("out/README.md").read_text()
    assert beside == Path("out/model/README.md").read_text().replace("(curves.svg)", "(model/curves.svg)")
    # the run's own configuration, not the model's
    assert json.loads(Path("out/config.json").read_text())["command"] == "train"


def test_a_hub_that_refuses_costs_no_training(work, capsys, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise ConnectionError("401 Client Error:\nInvalid user token")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    sentence = refused(capsys, command("--trl", "push_to_hub=true", "--trl", "hub_model_id=org/name"))
    assert sentence == "push_to_hub: cannot make the repository org/name (401 Client Error: Invalid user token)."
    assert list(work.iterdir()) == []


@pytest.mark.slow
def test_an_upload_that_fails_leaves_the_run(work, hub, capsys, monkeypatch):
    def fail(self, **kwargs):
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(HfApi, "upload_folder", fail)
    assert main(command("--trl", "push_to_hub=true", "--trl", "hub_model_id=org/name")) == 2
    error = capsys.readouterr().err
    assert "push_to_hub: cannot upload to the repository org/name (reset by peer); the run is finished" in error
    assert "`hf upload org/name out/model` tries again" in error and Path("out/model/model.safetensors").exists()
