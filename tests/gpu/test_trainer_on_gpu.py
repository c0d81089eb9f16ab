"""The trainer on the accelerator beside stock TRL: gradients, checkpointing, micro-batches, memory, resuming."""

import copy
import json

import pytest
import torch
from tiny import tiny_model
from trl_runs import logs, ours, reference_weighted, relative, scripted_rollouts, stock, weights

from covgrpo.cli import main

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

# Relative difference of a gradient: float32 sums in another order; bfloat16 products have 8 bits.
PRECISIONS = {"fp32": ({"bf16": False}, 1e-4), "bf16": ({"bf16": True}, 5e-2)}
OPTIONS = [
    {},
    {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
    {"num_iterations": 2},
    {"gradient_checkpointing": True},
    {"gradient_checkpointing": True, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
    {"loss_type": "grpo", "beta": 0.1},
]


@pytest.fixture(params=PRECISIONS)
def precision(request, device):
    if request.param == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        pytest.skip("this GPU has no bfloat16")
    return PRECISIONS[request.param]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_unweighted_is_stock_trl(tmp_path, on_gpu, precision, options):
    settings, tolerance = precision
    options = {**options, **settings, **on_gpu, "max_steps": 2}
    rollouts = {"constant_prompts": (0, 2)}
    theirs = stock(tmp_path / "a", rollouts=scripted_rollouts(7, **rollouts), **options)
    theirs.train()
    mine = ours(tmp_path / "b", rollouts=scripted_rollouts(7, **rollouts), weighting="none", **options)
    mine.train()
    assert relative(mine.gradients[0], theirs.gradients[0]) < tolerance
    assert logs(mine, "reward", "frac_reward_zero_std") == logs(theirs, "reward", "frac_reward_zero_std")


def test_without_the_fast_path_it_is_stock_trl_to_rounding(tmp_path, on_gpu):
    """Not to the last bit, as on CPUs: a GPU adds into an embedding's gradient in no fixed order."""
    theirs = stock(tmp_path / "a", max_steps=2, rollouts=scripted_rollouts(7), **on_gpu)
    theirs.train()
    mine = ours(tmp_path / "b", max_steps=2, rollouts=scripted_rollouts(7), weighting="none", fast_path=False, **on_gpu)
    mine.train()
    assert relative(mine.gradients[0], theirs.gradients[0]) < 1e-6


@pytest.mark.parametrize("fast_path", [False, True])
def test_gaussian_is_stock_trl_fed_with_the_references_weights(tmp_path, on_gpu, fast_path):
    options = {"max_steps": 1, **on_gpu}
    theirs = reference_weighted(tmp_path / "a", rollouts=scripted_rollouts(1), **options)
    theirs.train()
    mine = ours(tmp_path / "b", rollouts=scripted_rollouts(1), fast_path=fast_path, **options)
    mine.train()
    assert relative(mine.gradients[0], theirs.gradients[0]) < 1e-4


def test_the_split_into_micro_batches_changes_nothing(tmp_path, on_gpu):
    found = []
    for size in (16, 4, 1):
        split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 16 // size}
        mine = ours(tmp_path / str(size), rollouts=scripted_rollouts(7), max_steps=1, **split, **on_gpu)
        mine.train()
        found.append(mine.gradients[0])
    assert max(relative(gradient, found[0]) for gradient in found[1:]) < 1e-4


def test_the_shared_path_serves_and_passes_its_check(tmp_path, on_gpu, precision):
    mine = ours(tmp_path, max_steps=1, **precision[0], **on_gpu)
    mine.train()
    assert set(mine.scorer.first_use.values()) == {None}


def test_the_checks_allow_for_tf32(tmp_path, on_gpu, device):
    if device.type != "cuda":
        pytest.skip("TF32 is CUDA's")
    before = torch.get_float32_matmul_precision()
    try:
        mine = ours(tmp_path, max_steps=1, tf32=True, bf16=False, **on_gpu)
        mine.train()
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(mine.scorer.first_use.values()) == {None} and mine.sampler.refused is None


def test_a_run_of_the_command_line_trains_there(tmp_path, tiny_folder, device, capsys):
    run = tmp_path / "run"
    words = ["--task", "addition", "--steps", "2", "--evaluate", "--output", str(run), "--num-generations", "4"]
    words += ["--prompts-per-step", "2", "--max-completion-length", "8", "--eval-problems", "4"]
    assert main(["train", "--model", str(tiny_folder), *words]) == 0
    assert main(["report", str(run)]) == 0
    config = json.loads((run / "config.json").read_text())["trainer"]
    assert config["use_cpu"] is (device.type == "cpu") and config["gradient_checkpointing"] is not config["use_cpu"]
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in steps if "loss" in record] == [1, 2]


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path, on_gpu):
    options = {"save_strategy": "steps", "save_steps": 2, "rollouts": scripted_rollouts(7), **on_gpu}
    whole = ours(tmp_path / "a", max_steps=4, **{**options, "rollouts": None})
    whole.train()
    again = ours(tmp_path / "b", max_steps=4, **{**options, "rollouts": None})
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert relative(weights(again), weights(whole)) < 1e-6
    assert logs(again, "reward")[-2:] == logs(whole, "reward")[-2:]


def test_a_copy_of_the_trained_model_is_a_plain_model(tmp_path, on_gpu, device):
    mine = ours(tmp_path, max_steps=1, **on_gpu)
    mine.train()
    clone = copy.deepcopy(mine.model)
    ids = torch.arange(5, 15, device=device)[None]
    before = mine.model(ids).logits
    with torch.no_grad():
        for parameter in clone.parameters():
            parameter.zero_()
    assert clone(ids).logits.abs().max() == 0
    assert torch.equal(mine.model(ids).logits, before)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_is_no_more_than_stock_trls(tmp_path, on_gpu, device, checkpointing):
    if device.type != "cuda":
        pytest.skip("memory is counted on CUDA alone")
    shape = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "vocab_size": 32_000}
    prompt = "x" * 200
    options = {"gradient_checkpointing": checkpointing, **on_gpu}
    peaks = {}
    for side, build in (("trl", stock), ("covgrpo", ours)):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        trainer = build(tmp_path / side, model=tiny_model(scale=1.0, **shape), max_steps=2, **options)
        trainer.train_dataset = trainer.train_dataset.map(lambda _: {"prompt": [{"role": "user", "content": prompt}]})
        trainer.train()
        peaks[side] = torch.cuda.max_memory_allocated()
        del trainer
    assert peaks["covgrpo"] <= peaks["trl"] * 1.05
