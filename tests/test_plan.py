"""`covgrpo train --dry-run`, and every recipe that is shipped."""

import json
from pathlib import Path

import pytest
import yaml
from tiny import tiny_model, tiny_tokenizer

from covgrpo.cli import main
from covgrpo.models.shapes import KNOWN_SHAPES, shape_of

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml")) + sorted((ROOT / "recipes" / "paper").glob("*.yaml"))


def plan(capsys, *words):
    assert main(["train", "--dry-run", "--json", *map(str, words)]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a dry run needs no network")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", refuse)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_resolves_and_fits(recipe, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = plan(capsys, "--config", recipe)
    assert found["problems"] == [] or all("gradient checkpointing" in text for text in found["problems"])
    assert found["memory_bytes"]["in all"] > 0 and found["seconds"]["in all"] > 0
    assert list(tmp_path.iterdir()) == [], "a dry run writes nothing"


@pytest.mark.parametrize("size", ["1.5b", "7b"])
@pytest.mark.parametrize("method", ["grpo", "clip_cov", "gaussian"])
def test_the_papers_set_up(size, method, capsys):
    found = plan(capsys, "--config", ROOT / "recipes" / "paper" / f"{size}-{method}.yaml")
    facts = found["facts"]
    assert (facts["micro-batch on a device"], facts["micro-batches a step"]) == (12, 4)
    assert facts["completions a step"] == 48 and facts["completion tokens a step, at most"] == 48 * 4096
    assert facts["method"] == method
    options = yaml.safe_load((ROOT / "recipes" / "paper" / f"{size}-{method}.yaml").read_text())
    assert (options["temperature"], options["learning_rate"], options["num_generations"]) == (0.7, 1e-6, 12)
    assert any("knoveleng/open-rs" in text for text in found["downloads"]) and len(found["downloads"]) == 2


def test_the_recipes_differ_in_the_method_alone():
    for size in ("1.5b", "7b"):
        made = [yaml.safe_load((ROOT / f"recipes/paper/{size}-{m}.yaml").read_text()) for m in ("grpo", "gaussian")]
        assert {key for key in made[0] if made[0][key] != made[1][key]} == {"method"}


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_configs_are_accelerates(path):
    from accelerate.commands.config.config_args import ClusterConfig

    config = ClusterConfig.from_yaml_file(str(path))
    assert config.mixed_precision == "bf16" and config.num_processes >= 4


def test_more_processes_take_more_prompts(capsys):
    recipe = ROOT / "recipes/paper/1.5b-gaussian.yaml"
    facts = plan(capsys, "--config", recipe, "--processes", 4, "--prompts-per-step", 16)["facts"]
    assert (facts["micro-batch on a device"], facts["micro-batches a step"], facts["completions a step"]) == (
        12,
        4,
        192,
    )


def test_sharding_and_adapters_take_less_memory(capsys):
    recipe = ROOT / "recipes/paper/7b-gaussian.yaml"
    words = ["--config", recipe, "--processes", 4, "--prompts-per-step", 16]
    memory = {kind: plan(capsys, *words, "--shards", kind)["memory_bytes"] for kind in ("none", "zero2", "zero3")}
    assert memory["none"]["weights"] == memory["zero2"]["weights"] == 4 * memory["zero3"]["weights"]
    assert memory["none"]["AdamW"] == pytest.approx(4 * memory["zero2"]["AdamW"], rel=1e-6)
    lora = plan(capsys, *words, "--lora-r", 16, "--dtype", "bfloat16")["memory_bytes"]
    assert lora["AdamW"] < memory["none"]["AdamW"] / 100 and lora["weights"] == memory["none"]["weights"] / 2


def test_what_does_not_fit_together_is_said(capsys):
    words = ["--task", "addition", "--model", "Qwen/Qwen2.5-Math-7B-Instruct", "--max-completion-length", 4096]
    words += ["--format-weight", "0.5", "--trl", "use_vllm=true"]
    said = " ".join(plan(capsys, *words)["problems"])
    assert "context of 4096" in said and "plain format asks for nothing" in said
    assert "sizes of org/unknown" in " ".join(plan(capsys, "--task", "addition", "--model", "org/unknown")["problems"])


def test_in_words(capsys):
    assert main(["train", "--dry-run", "--config", str(ROOT / "recipes/paper/1.5b-gaussian.yaml")]) == 0
    said = capsys.readouterr().out
    assert "would download model deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B, about 3.6 GB" in said
    assert "completions a step" in said and "memory of a device, weights" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dry-run"], "no task given"),
        (["--dry-run", "--task", "addition", "--processes", "3"], "does not divide over 3 processes"),
        (["--dry-run", "--task", "addition", "--processes", "0"], "processes is 0"),
        (["--dry-run", "--task", "addition", "--shards", "zero9"], "shards 'zero9' is unknown"),
        (["--task", "addition", "--shards", "zero2"], "--shards belongs to --dry-run"),
    ],
)
def test_bad_input(words, said, capsys):
    assert main(["train", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_the_papers_run_on_a_tiny_model(tmp_path, monkeypatch, capsys):
    """The 1.5B recipe with the model and the data replaced, every other option untouched; then evaluated and tabled."""
    data = Path(__file__).resolve().parents[2] / "shared" / "data" / "math500.jsonl"
    if not data.exists():
        pytest.skip("benchmark file math500.jsonl is not on this machine")
    monkeypatch.undo()  # of the refusal to load anything
    monkeypatch.chdir(tmp_path)
    tiny_model(max_position_embeddings=8192).save_pretrained("tiny")
    tiny_tokenizer().save_pretrained("tiny")
    recipe = str(ROOT / "recipes/paper/1.5b-gaussian.yaml")
    words = ["--model", "tiny", "--task", f"jsonl:{data}?split=all", "--steps", "3", "--output", "run"]
    assert main(["train", "--config", recipe, *words]) == 0
    config = json.loads(Path("run/config.json").read_text())
    asked, options = yaml.safe_load(Path(recipe).read_text()), config["options"]
    changed = {"model", "task", "steps"}
    assert {k: options[k] for k in asked if k not in changed} == {k: v for k, v in asked.items() if k not in changed}
    assert config["trainer"]["gradient_checkpointing"] and config["trainer"]["max_completion_length"] == 4096
    Path("math500.jsonl").write_text("".join(data.read_text(encoding="utf-8").splitlines(keepends=True)[:8]))
    words = ["--samples", "2", "--max-completion-length", "32", "--label", "gaussian", "--result", "results/g.json"]
    assert main(["eval", "run", "--benchmark", "math500.jsonl", *words]) == 0
    capsys.readouterr()
    assert main(["table", "results/g.json", "--paper", "1.5b"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| model | AIME24 | MATH-500") and lines[2].startswith("| gaussian |")
    assert lines[-1].startswith("| gaussian less paper: gaussian |")


def test_parameters_of_known_models():
    published = {"deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": 1.777e9, "Qwen/Qwen2.5-7B-Instruct": 7.616e9}
    published |= {"Qwen/Qwen2.5-1.5B-Instruct": 1.544e9, "smollm2-135m": 134.5e6}
    for name, parameters in published.items():
        assert KNOWN_SHAPES[name].parameters == pytest.approx(parameters, rel=0.002)


def test_sizes_of_a_local_folder(tiny_folder):
    shape = shape_of(str(tiny_folder))
    assert shape is not None and (shape.layers, shape.hidden) == (2, 32)
    assert shape_of(str(tiny_folder / "nothing")) is None
