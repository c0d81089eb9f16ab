"""`covgrpo train --dry-run`, and every recipe that is shipped."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml
from tiny import tiny_model, tiny_tokenizer
from transformers import TrainingArguments
from trl import GRPOConfig

from covgrpo.cli import main
from covgrpo.evaluation.table import COLUMNS, PAPER
from covgrpo.models.shapes import KNOWN_SHAPES, shape_of
from covgrpo.runs.options import TrainOptions
from covgrpo.tasks import get_answer_format
from covgrpo.yaml_text import read_yaml

ROOT = Path(__file__).parents[1]
PAPER_METHODS = ("grpo", "clip_cov", "gaussian", "gaussian_through")
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
    assert found["problems"] == []
    assert found["memory_bytes"]["in all"] > 0 and found["seconds"]["in all"] > 0
    assert list(tmp_path.iterdir()) == [], "a dry run writes nothing"


def paper_recipe(size, method):
    path = ROOT / "recipes" / "paper" / f"{size}-{method}.yaml"
    return path, read_yaml(str(path))


# What the authors' code and the paper say, by size; what they leave to their libraries' defaults is there as well.
AUTHORS = {
    "bf16": True, "task": "hub:knoveleng/open-rs?split=all", "max_prompt_length": 512, "num_examples": 0,
    "answer_format": "think_line", "loss_type": "grpo", "beta": 0.04, "num_iterations": 1, "prompts_per_step": 12,
    "num_generations": 12, "micro_batch_size": 12, "temperature": 0.7, "loss_temperature": 1.0, "seed": 2025,
    "learning_rate": 1e-6, "lr_scheduler_type": "cosine_with_min_lr", "weight_decay": 0.0, "adam_beta2": 0.999,
    "max_grad_norm": 1.0, "correctness_weight": 1.0,
}  # fmt: skip
AUTHORS_BY_SIZE = {
    "1.5b": {
        "model": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "format_weight": 1.0, "max_completion_length": 4096,
        "steps": 100, "schedule_steps": 300, "warmup_steps": 30,
    },
    "7b": {
        "model": "Qwen/Qwen2.5-Math-7B-Instruct", "format_weight": 0.0, "max_completion_length": 4096 - 512,
        "steps": 150, "schedule_steps": 150, "warmup_steps": 15,
    },
}  # fmt: skip
# Options that decide nothing of a run of these recipes: where it writes, what it records, how fast it is, LoRA.
UNDECIDING = {
    *("task_params", "verifier_timeout", "verifier_workers", "verifier_memory", "trust_remote_code", "threads"),
    *("lora_r", "lora_alpha"),
    *("weighting", "weighting_scope", "weighting_kwargs", "output", "resume", "samples_per_step", "tokens_per_step"),
    *("entropy_probe_steps", "evaluate", "eval_problems", "eval_samples", "eval_steps", "eval_steps_samples"),
    *("eval_temperatures", "eval_batch_size", "eval_task", "eval_task_length", "report_to", "fast_path"),
}


@pytest.mark.parametrize("size", AUTHORS_BY_SIZE)
@pytest.mark.parametrize("method", PAPER_METHODS)
def test_the_papers_set_up(size, method, capsys):
    path, options = paper_recipe(size, method)
    for name, value in (AUTHORS | AUTHORS_BY_SIZE[size]).items():
        assert options[name] == value, name
    assert options["method"] == method
    assert " ".join(options["system_prompt"].split()) == get_answer_format("think_line").instruction
    found = plan(capsys, "--config", path)
    facts = found["facts"]
    assert (facts["micro-batch on a device"], facts["micro-batches a step"]) == (12, 12)
    assert (facts["completions a step"], facts["prompts a step"], facts["completions a prompt"]) == (144, 12, 12)
    assert facts["method"] == method and facts["loss"] == "grpo, advantages scaled by group"
    assert facts["KL penalty"] == "0.04 x KL to the initial model"
    assert facts["temperature"] == "0.7 in sampling, 1 in the loss"
    steps = "300 steps, 30 of warm-up; the run takes the first 100" if size == "1.5b" else "150 steps, 15 of warm-up"
    assert facts["learning rate"] == f"1e-06, cosine_with_min_lr, min_lr_rate 0.1, over {steps}"
    paid = 1 if size == "1.5b" else 0
    assert facts["rewards"] == f"correctness x 1, format x {paid} (think_line)"
    assert any("knoveleng/open-rs" in text for text in found["downloads"]) and len(found["downloads"]) == 2
    assert found["problems"] == []


@pytest.mark.parametrize("size", AUTHORS_BY_SIZE)
def test_the_recipes_leave_no_deciding_option_to_a_default(size):
    for method in PAPER_METHODS:
        path, options = paper_recipe(size, method)
        assert set(options) | UNDECIDING == {field.name for field in dataclasses.fields(TrainOptions)}
        assert method in ("grpo", "gaussian") or options["weighting_kwargs"]
        source = re.compile(r"#.*\b(paper|code|ours)\b")
        for line in path.read_text().splitlines():
            key = line.partition(":")[0]
            if key in options and key not in ("trl", "system_prompt"):  # whose sources stand in the lines about them
                assert source.search(line), line


# TRL's own options that decide nothing of these runs, by the reason.
UNDECIDING_OF_TRL = {
    # of other loss types, of models with a router, tools or images, of adapters
    *("sapo_temperature_neg", "sapo_temperature_pos", "vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg"),
    *("vespo_lambda_neg", "router_aux_loss_coef", "max_tool_calling_iterations", "log_multimodal", "trust_remote_code"),
    # of terms that the recipes switch off
    *("ref_model_mixup_alpha", "ref_model_sync_steps", "entropy_coef_min", "entropy_coef_max", "entropy_coef_delta"),
    *("entropy_target", "vllm_importance_sampling_mode", "vllm_importance_sampling_clip_max"),
    *("vllm_importance_sampling_clip_min", "vllm_importance_sampling_cap"),
    # clipping, which never acts on-policy; dropout, which these models have none of
    *("epsilon", "epsilon_high", "disable_dropout"),
    # how the batch is cut and padded, which the update does not depend on
    *("generation_batch_size", "steps_per_generation", "pad_to_multiple_of", "ds3_gather_for_generation"),
    # who samples, and what the sampler is made of
    *("use_vllm", "vllm_mode", "vllm_model_impl", "vllm_enable_sleep_mode", "vllm_structured_outputs_regex"),
    *("vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout", "vllm_group_port"),
    *("vllm_gpu_memory_utilization", "vllm_tensor_parallel_size", "use_transformers_continuous_batching"),
    *("transformers_continuous_batching_config", "use_transformers_paged", "cache_implementation"),
    # the model's files, precision and chat template: the run loads the model by its own options
    *("model_init_kwargs", "cast_lm_head_to_fp32", "chat_template_kwargs"),
    # the order of the prompts, another than the authors' in any case
    "shuffle_dataset",
    # evaluation and logs
    *("num_generations_eval", "log_completions", "num_completions_to_print", "log_unique_prompts"),
    "log_completions_hub_repo",
}


@pytest.mark.parametrize("size", AUTHORS_BY_SIZE)
@pytest.mark.parametrize("method", PAPER_METHODS)
def test_the_recipes_leave_no_deciding_option_of_trl_to_a_default(size, method):
    """A term that TRL has added since, such as its factor on the KL penalty, acts unless the recipe says otherwise."""
    of_transformers = {field.name for field in dataclasses.fields(TrainingArguments)}
    of_trl = {field.name for field in dataclasses.fields(GRPOConfig)} - of_transformers
    options = paper_recipe(size, method)[1]
    decided = set(options) | set(options["trl"]) | {"reward_weights", "generation_kwargs"}
    assert of_trl - decided == UNDECIDING_OF_TRL
    assert not UNDECIDING_OF_TRL & decided


def test_the_recipes_differ_in_the_method_alone():
    own = {"method", "weighting_scope", "weighting_kwargs"}
    for size in AUTHORS_BY_SIZE:
        shared = [
            {key: value for key, value in paper_recipe(size, method)[1].items() if key not in own}
            for method in PAPER_METHODS
        ]
        assert all(options == shared[0] for options in shared)
    between = AUTHORS_BY_SIZE["7b"].keys()
    small, large = paper_recipe("1.5b", "grpo")[1], paper_recipe("7b", "grpo")[1]
    assert {key for key in small if small[key] != large[key]} == between


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 6, 12])
def test_144_completions_on_devices_that_take_whole_groups(processes, capsys):
    facts = plan(capsys, "--config", paper_recipe("1.5b", "grpo")[0], "--processes", processes)["facts"]
    assert (facts["completions a step"], facts["micro-batch on a device"]) == (144, 12)
    assert facts["micro-batches a step"] == 12 // processes


def test_144_completions_on_eight_devices(capsys):
    path, _ = paper_recipe("7b", "grpo")
    words = ["--config", path, "--processes", 8, "--shards", "zero3"]
    assert main(["train", "--dry-run", *map(str, words)]) == 2
    assert "must divide the 18 completions of a process's step" in capsys.readouterr().err
    for size, number in ((9, 2), (6, 3), (18, 1)):
        found = plan(capsys, *words, "--micro-batch-size", size)
        facts = found["facts"]
        assert (facts["completions a step"], facts["micro-batches a step"]) == (144, number)
        assert found["problems"] == []


def test_the_heads_of_the_recipes_quote_the_plan(capsys):
    """Memory and seconds in the comments of the files are those of the dry run, for the slowest of the methods."""
    for size, words in (
        ("1.5b", []),
        ("7b", ["--processes", 8, "--micro-batch-size", 9, "--shards", "zero3"]),
    ):
        found = [plan(capsys, "--config", paper_recipe(size, method)[0], *words) for method in PAPER_METHODS]
        memory = {round(one["memory_bytes"]["in all"] / 2**30) for one in found}
        seconds = max(round(one["seconds"]["in all"]) for one in found)
        for method in PAPER_METHODS:
            head = " ".join(paper_recipe(size, method)[0].read_text().replace("\n# ", " ").split())
            assert f"{memory.copy().pop()} GiB" in head and f"up to {seconds} s a step" in head
        assert len(memory) == 1


def test_the_heads_of_the_recipes_quote_the_paper():
    for size in AUTHORS_BY_SIZE:
        for method in PAPER_METHODS:
            row = PAPER[size][method.removesuffix("_through")]
            expected = ", ".join(f"{name} {value:.3f}" for name, value in zip(COLUMNS.values(), row, strict=True))
            assert f"# Expected, the paper's figures: {expected}\n" in paper_recipe(size, method)[0].read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_configs_are_accelerates(path):
    from accelerate.commands.config.config_args import ClusterConfig

    config = ClusterConfig.from_yaml_file(str(path))
    assert config.mixed_precision == "bf16" and config.num_processes >= 4


def test_more_processes_take_more_prompts(capsys):
    recipe = ROOT / "recipes/paper/1.5b-gaussian.yaml"
    facts = plan(capsys, "--config", recipe, "--processes", 4, "--prompts-per-step", 16)["facts"]
    shown = facts["micro-batch on a device"], facts["micro-batches a step"], facts["completions a step"]
    assert shown == (12, 4, 192)


def test_sharding_and_adapters_take_less_memory(capsys):
    recipe = ROOT / "recipes/paper/7b-gaussian.yaml"
    words = ["--config", recipe, "--processes", 4, "--prompts-per-step", 16]
    memory = {kind: plan(capsys, *words, "--shards", kind)["memory_bytes"] for kind in ("none", "zero2", "zero3")}
    assert all(one["reference model"] == one["weights"] for one in memory.values())
    assert memory["none"]["weights"] == memory["zero2"]["weights"] == 4 * memory["zero3"]["weights"]
    assert memory["none"]["AdamW"] == pytest.approx(4 * memory["zero2"]["AdamW"], rel=1e-6)
    lora = plan(capsys, *words, "--lora-r", 16, "--dtype", "bfloat16")["memory_bytes"]
    assert lora["reference model"] == 0 and plan(capsys, *words, "--beta", 0)["memory_bytes"]["reference model"] == 0
    assert lora["AdamW"] < memory["none"]["AdamW"] / 100 and lora["weights"] == memory["none"]["weights"] / 2


def test_what_does_not_fit_together_is_said(capsys):
    words = ["--task", "addition", "--model", "Qwen/Qwen2.5-Math-7B-Instruct", "--max-completion-length", 4096]
    words += ["--format-weight", "0.5", "--trl", "use_vllm=true"]
    said = " ".join(plan(capsys, *words)["problems"])
    assert "prompts of about 256 tokens" in said and "context of 4096" in said and "plain format" in said
    said = " ".join(plan(capsys, *words, "--max-prompt-length", 512)["problems"])
    assert "prompts of up to 512 tokens and completions of 4096 do not fit the model's context of 4096" in said
    assert "sizes of org/unknown" in " ".join(plan(capsys, "--task", "addition", "--model", "org/unknown")["problems"])


def test_in_words(capsys):
    assert main(["train", "--dry-run", "--config", str(ROOT / "recipes/paper/1.5b-gaussian.yaml")]) == 0
    said = capsys.readouterr().out
    assert "would download model deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B, about 3.6 GB" in said
    assert "completions a step" in said and "memory of a device, weights" in said


def test_passes_without_gradient_take_time(capsys):
    """2 operations a weight and token each: the reference model's, and log-probs that the sampler does not return."""
    words = ["--config", paper_recipe("1.5b", "gaussian")[0]]
    two = plan(capsys, *words)["seconds"]
    assert two["scoring"] == pytest.approx(two["update"] * 4 / 8)
    assert plan(capsys, *words, "--weighting", "none")["seconds"]["scoring"] == pytest.approx(two["scoring"] / 2)
    assert plan(capsys, *words, "--beta", 0)["seconds"]["scoring"] == pytest.approx(two["scoring"] / 2)
    shared = ["--beta", 0, "--fast-path", "--loss-temperature", "0.7"]
    assert plan(capsys, *words, *shared)["seconds"]["scoring"] == 0


def test_a_plain_run_in_words(capsys):
    assert main(["train", "--dry-run", "--task", "addition", "--method", "grpo", "--seed", "2025"]) == 0
    lines = {tuple(line.split(maxsplit=1)) for line in capsys.readouterr().out.splitlines()}
    assert {("seed", "2025"), ("weighting", "none"), ("KL", "penalty                           none")} <= lines
    assert any(rest == "rate                        1e-05, constant, over 100 steps, 0 of warm-up" for _, rest in lines)


@pytest.mark.slow
def test_the_papers_run_on_a_tiny_model(tmp_path, monkeypatch, capsys):
    """The 1.5B recipe, model and data replaced and completions short, all else untouched; then evaluated and tabled.

    With completions up to 4,096 tokens, as the recipe has them, two steps take six minutes on two cores.
    """
    data = Path(__file__).resolve().parents[2] / "shared" / "data" / "math500.jsonl"
    if not data.exists():
        pytest.skip("benchmark file math500.jsonl is not on this machine")
    monkeypatch.undo()  # of the refusal to load anything
    monkeypatch.chdir(tmp_path)
    tiny_model(max_position_embeddings=8192).save_pretrained("tiny")
    tiny_tokenizer().save_pretrained("tiny")
    recipe = str(ROOT / "recipes/paper/1.5b-gaussian.yaml")
    words = ["--model", "tiny", "--task", f"jsonl:{data}?split=all", "--steps", "2", "--output", "run"]
    words += ["--max-completion-length", "32"]
    assert main(["train", "--config", recipe, *words]) == 0
    config = json.loads(Path("run/config.json").read_text())
    asked, options = yaml.safe_load(Path(recipe).read_text()), config["options"]
    changed = {"model", "task", "steps", "max_completion_length"}
    assert {k: options[k] for k in asked if k not in changed} == {k: v for k, v in asked.items() if k not in changed}
    trainer = config["trainer"]
    assert (trainer["max_steps"], trainer["warmup_steps"], trainer["beta"]) == (300, 30, 0.04)
    assert (trainer["temperature"], trainer["generation_kwargs"]) == (1.0, {"temperature": 0.7})
    assert trainer["gradient_accumulation_steps"] == 12 and trainer["gradient_checkpointing"]
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2] and all(record["grad_norm"] > 0 for record in records)
    assert [record["learning_rate"] for record in records] == pytest.approx([0, 1e-6 / 30])
    assert all("kl" in record for record in records)
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


def test_a_rollout_batch_with_several_updates_is_counted_once(capsys):
    words = ["--model", "smollm2-135m", "--task", "addition", "--steps", 5]
    once, twice = (plan(capsys, *words, "--num-iterations", n)["facts"] for n in (1, 2))
    drawn = once["completions a step"]
    assert [facts["completions over the run"] for facts in (once, twice)] == [5 * drawn, 3 * drawn]
