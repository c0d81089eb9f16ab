"""What TRL brings keeps working with weighted advantages: stock TRL fed by the float64 reference is the yardstick."""

import functools
import logging
import math
import random

import pytest
import reference
import reference_candidates
import reference_through
import torch
import trl.trainer.grpo_trainer
from exactness_cases import rollouts_by_prompt
from peft import LoraConfig
from tiny import tiny_model
from trl_runs import BASE, dataset, digit_reward, ours, reference_weighted, relative, scripted_rollouts, stock, weights

from covgrpo.trl import METHODS
from covgrpo.trl.rollout import Rollout

pytestmark = pytest.mark.slow


def assert_like_reference(tmp_path, rollouts=None, prepare=None, **options):
    trainers = []
    for make, folder in ((reference_weighted, "a"), (ours, "b")):
        trainer = make(tmp_path / folder, rollouts=rollouts() if rollouts else None, max_steps=3, **options)
        if prepare:
            prepare(trainer)
        trainer.train()
        trainers.append(trainer)
    theirs, mine = trainers
    assert theirs.gradients[0].abs().max() > 0
    assert relative(mine.gradients[0], theirs.gradients[0]) < 1e-5
    assert relative(weights(mine), weights(theirs)) < 1e-5
    return mine


LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")


@pytest.mark.parametrize("loss_type", LOSSES)
def test_every_loss_type(tmp_path, loss_type):
    assert_like_reference(tmp_path, lambda: scripted_rollouts(5), loss_type=loss_type, num_iterations=2)


@pytest.mark.parametrize(
    "options",
    [
        {"scale_rewards": "none"},
        {"scale_rewards": "batch"},
        {"mask_truncated_completions": True},
        {"importance_sampling_level": "sequence", "loss_type": "grpo"},
        {"top_entropy_quantile": 0.4},
        {"entropy_coef": 0.01},
        {"off_policy_mask_threshold": 0.5, "num_iterations": 2},
        {"temperature": 0.7},
    ],
    ids=str,
)
def test_options(tmp_path, options):
    assert_like_reference(tmp_path, lambda: scripted_rollouts(5, constant_prompts=(1,)), **options)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_with_reference_model(tmp_path, checkpointing):
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    assert_like_reference(
        tmp_path, lambda: scripted_rollouts(5), peft_config=lora, beta=0.05, gradient_checkpointing=checkpointing
    )


def test_environment_tokens_count_in_no_statistic(tmp_path, monkeypatch):
    """`rollout_func` marks tokens that the environment wrote; they are masked in loss and statistics."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")

    def prepare(trainer):
        rng = random.Random(0)

        def rollout(prompts, trainer):
            ids = [[rng.randint(3, 80) for _ in range(rng.randint(3, 10))] for _ in prompts]
            return {
                "prompt_ids": trainer._tokenize_prompts(prompts)[0],
                "completion_ids": ids,
                "logprobs": [[0.0] * len(row) for row in ids],
                "env_mask": [[int(position % 3 != 1) for position in range(len(row))] for row in ids],
            }

        trainer.rollout_func = rollout

    assert_like_reference(tmp_path, prepare=prepare, per_device_train_batch_size=8, gradient_accumulation_steps=2)


class StandInVLLM:
    """Returns completions with log-probs of other numerics, as vLLM does."""

    def __init__(self, *args, **kwargs):
        self.rollouts, self.synced = scripted_rollouts(9), 0

    def sync_weights(self):
        self.synced += 1

    def generate(self, prompts, images, num_generations, profiler):
        ids, _ = self.rollouts(prompts, images, None, num_generations)
        rng = random.Random(1)
        return prompts, ids, [[[-3.0 + rng.random()] for _ in row] for row in ids], None


@pytest.mark.parametrize("correction", [True, False])
def test_vllm_log_probs_are_not_the_statistics(tmp_path, monkeypatch, correction):
    """The weights come from the trainer's own numerics, whatever the inference engine reports."""
    monkeypatch.setattr(trl.trainer.grpo_trainer, "VLLMGeneration", StandInVLLM)
    mine = assert_like_reference(
        tmp_path, use_vllm=True, vllm_mode="colocate", vllm_importance_sampling_correction=correction
    )
    assert mine.vllm_generation.synced == 3
    assert mine.sampler.latest is None


def test_evaluation_during_training_changes_nothing(tmp_path):
    results = []
    evaluation = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "per_device_eval_batch_size": 8,
        "eval_dataset": dataset(4),
    }
    for folder, options in (("a", {}), ("b", evaluation)):
        mine = ours(tmp_path / folder, max_steps=3, **options)
        mine._generate_single_turn = rollouts_by_prompt(mine)
        mine.train()
        results.append(mine)
    assert relative(weights(results[1]), weights(results[0])) < 1e-5  # the shuffle draws other numbers: rounding
    evaluations = [log for log in results[1].state.log_history if "eval_reward" in log]
    assert len(evaluations) == 3
    assert all(math.isfinite(log["eval_loss"]) for log in evaluations)


# What the reference multiplies the advantages by, for the methods that weigh tokens; the others are TRL's own options.
WEIGHED = {
    "gaussian": reference.gaussian_weights,
    "gaussian_through": functools.partial(reference_through.gaussian_through_weights, normaliser="token"),
    "gaussian_raw": reference.gaussian_raw_weights,
    "gaussian_centred": reference.gaussian_centred_weights,
    "gaussian_one_sided": reference.gaussian_one_sided_weights,
    "gaussian_mad": reference.gaussian_mad_weights,
    "neutral": reference.neutral_weights,
    "hold_entropy": reference.neutral_weights,  # whose kappa is 1 in the first steps
    "entropy_floor": reference.neutral_weights,  # likewise
    "clip_cov": functools.partial(
        reference.clip_cov_weights,
        noise=reference.token_noise(BASE["seed"], range(BASE["per_device_train_batch_size"]), 10),
    ),
    "prob": reference.probability_weights,
    "gaussian_per_sign": reference_candidates.gaussian_per_sign_weights,
    "neutral_common": reference_candidates.neutral_common_weights,
    "delight": reference_candidates.delight_weights,
    "positive_only": reference_candidates.positive_only_weights,
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_updates_as_stock_trl_with_its_weights(tmp_path, method):
    """An on-policy update and one on the same rollouts; of KL-Cov only the first, before its penalty acts."""
    options = METHODS[method]
    of_trl = {name: value for name, value in options.items() if not name.startswith("weighting")}
    settings = {"max_steps": 1 if method == "kl_cov" else 2, "num_iterations": 2}
    make = reference_weighted if method in WEIGHED else stock
    theirs = make(tmp_path / "a", rollouts=scripted_rollouts(5), **settings, **of_trl)
    if method in WEIGHED:
        theirs.weigh, theirs.scope = WEIGHED[method], options.get("weighting_scope", "group")
        theirs.centred = method in ("neutral", "hold_entropy", "entropy_floor")
    theirs.train()
    if method in WEIGHED:
        assert (theirs.applied - 1).abs().max() > 0.05
    mine = ours(tmp_path / "b", rollouts=scripted_rollouts(5), **settings, **options)
    mine.train()
    assert len(mine.gradients) == settings["max_steps"] and mine.gradients[0].abs().max() > 0
    assert relative(mine.gradients[0], theirs.gradients[0]) < 1e-5
    assert relative(mine.gradients[-1], theirs.gradients[-1]) < 1e-4
    assert relative(weights(mine), weights(theirs)) < 1e-5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weighting": "kl_cov", "epsilon": 1e6, "loss_type": "sapo"}, "loss_type='sapo'"),
        ({"weighting": "kl_cov", "epsilon": 1e6, "importance_sampling_level": "sequence"}, "sequence"),
        ({"weighting": "kl_cov"}, "without PPO clipping"),
        ({"weighting": "gausian"}, "Did you mean 'gaussian'"),
        ({"weighting": "prob", "weighting_kwargs": {"alpha": 2}}, "alpha"),
        ({"weighting_scope": "token"}, "weighting_scope"),
        ({"weighting": "gaussian_through", "loss_type": "vespo"}, "GaussianThrough.*loss_type='vespo' does neither"),
        (
            {"weighting": "gaussian_through", "weighting_kwargs": {"normaliser": "token"}, "loss_type": "grpo"},
            "loss_type='grpo' needs 'completion'",
        ),
        ({"weighting": "gaussian_through", "importance_sampling_level": "sequence"}, "not 'sequence'"),
        ({"weighting": "gaussian_through", "top_entropy_quantile": 0.2}, "top_entropy_quantile=1.0, not 0.2"),
        (
            {
                "weighting": "gaussian_through",
                "weighting_scope": "batch",
                "steps_per_generation": 2,
                "gradient_accumulation_steps": 1,
            },
            r"steps_per_generation \(2\) must not exceed gradient_accumulation_steps \(1\)",
        ),
        ({"weighting": "gaussian_through", "mask_truncated_completions": True}, "mask_truncated_completions=False"),
    ],
)
def test_what_cannot_be_is_refused_at_start(tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        ours(tmp_path, **options)


def test_kl_cov_is_inert_on_policy(tmp_path):
    plain = ours(tmp_path / "a", rollouts=scripted_rollouts(5), weighting="none")
    plain.train()
    options = {"weighting": "kl_cov", "weighting_kwargs": {"ratio": 0.5}, "epsilon": 1e6}
    held = ours(tmp_path / "b", rollouts=scripted_rollouts(5), **options)
    held.train()
    assert relative(weights(held), weights(plain)) < 1e-6


RESUMES = [
    {},  # 16 prompts, four a step: the third epoch begins at step 9
    {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
    {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "steps_per_generation": 8},
    {"num_iterations": 3, "weighting_scope": "batch"},
    {"weighting": "clip_cov", "weighting_kwargs": {"ratio": 0.2, "low": 0.0}, "lr_scheduler_type": "cosine"},
    {"fast_path": False, "weighting": "none"},
]


@pytest.mark.parametrize("options", RESUMES, ids=str)
def test_a_resumed_run_ends_bit_identical(tmp_path, options):
    """Real sampling, several epochs, checkpoints in the middle of rollout batches."""
    whole = ours(tmp_path / "whole", max_steps=11, **options)
    whole.train()
    for stop in (3, 5):
        cut = tmp_path / f"cut-{stop}"
        first = ours(cut, max_steps=11, save_strategy="steps", save_steps=stop, **options)
        first.add_callback(_StopAfter(stop))
        first.train()
        second = ours(cut, max_steps=11, save_strategy="steps", save_steps=100, **options)
        second.train(resume_from_checkpoint=str(cut / f"checkpoint-{stop}"))
        assert second.state.global_step == 11
        assert torch.equal(weights(second), weights(whole))
        assert all(torch.equal(a, b) for a, b in zip(second.gradients, whole.gradients[stop:], strict=True))


class _StopAfter(trl.trainer.grpo_trainer.transformers.TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_training_stop = True


def extra_reward(completions, log_extra=None, **_):
    log_extra("length", [len(completion[0]["content"]) for completion in completions])
    return digit_reward(completions)


def test_a_run_resumed_within_a_rollout_batch_goes_on_with_columns_of_its_own(tmp_path):
    """TRL's table of completions has what a reward function logs beside them; the next evaluation adds rows to all."""
    options = {
        "reward_funcs": extra_reward, "weighting": "none", "max_steps": 4, "save_strategy": "steps", "save_steps": 1,
        "per_device_train_batch_size": 8, "steps_per_generation": 4, "gradient_accumulation_steps": 1,
        "eval_strategy": "steps", "eval_steps": 3, "per_device_eval_batch_size": 4, "eval_dataset": dataset(2),
        "log_completions": True, "num_completions_to_print": 0,
    }  # fmt: skip
    ours(tmp_path, **options).train()
    resumed = ours(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 4
    assert len(resumed._logs["extra"]["length"]) == len(resumed._logs["completion"]) > 0


def test_a_resumed_stream_says_what_it_does_not_restore(tmp_path, caplog):
    options = {"train_dataset": dataset(8).to_iterable_dataset(), "save_strategy": "steps", "save_steps": 1}
    ours(tmp_path, **options, max_steps=1).train()
    assert "data is a stream" not in caplog.text
    ours(tmp_path, **options, max_steps=2).train(resume_from_checkpoint=True)
    assert "The training data is a stream" in caplog.text


def test_stop_tokens_of_the_users_own_end_a_completion(tmp_path):
    stop, seen = list(range(3, 60)), []
    trainer = ours(tmp_path, model=tiny_model(scale=4.0), max_steps=1, generation_kwargs={"eos_token_id": [2, *stop]})
    generate = trainer._generate_single_turn

    def recording(*args, **kwargs):
        result = generate(*args, **kwargs)
        seen.extend(list(ids) for ids in result[0])
        return result

    trainer._generate_single_turn = recording
    trainer.train()
    assert any(token in stop for ids in seen for token in ids)
    for ids in seen:
        first = next((i for i, token in enumerate(ids) if token in stop), len(ids))
        assert not set(ids[first + 1 :]) - {0, 2}


@pytest.mark.parametrize("iterations", [1, 2])
def test_a_run_resumed_with_other_micro_batches_stays_on_policy(tmp_path, caplog, iterations):
    """TRL counts micro-batches: the old count is one of other ones, and rollouts under way are cut otherwise."""
    before = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1, "num_iterations": iterations}
    after = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "num_iterations": iterations}
    seen = []

    def watched(**options):
        trainer = ours(tmp_path, save_strategy="steps", save_steps=3, **options)
        compute = trainer._compute_loss

        def watching(model, inputs):
            rollout = Rollout.read(inputs)
            seen.append((trainer.state.global_step, int(rollout.step), rollout.row_B.tolist()))
            return compute(model, inputs)

        trainer._compute_loss = watching
        return trainer

    watched(max_steps=3, **before).train()
    rows_before = {row for _, _, rows in seen for row in rows}
    seen.clear()
    watched(max_steps=6, **after).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert [now for now, _, _ in seen] == [3, 3, 4, 4, 5, 5]
    assert all(now - sampled < iterations for now, sampled, _ in seen)
    assert not rows_before & {row for _, _, rows in seen for row in rows}, "no row's place, nor its noise, comes again"
    assert "was written with rollout batches split otherwise" in caplog.text


def test_a_float64_model_with_rows_that_need_no_gradient(tmp_path):
    """The sampler's log-probs are float32."""
    trainer = ours(
        tmp_path, rollouts=None, model=tiny_model().double(), max_steps=2, weighting="gaussian",
        reward_funcs=lambda prompts, completions, **_: [
            float("3?" in prompt[-1]["content"]) * len(completion[0]["content"])
            for prompt, completion in zip(prompts, completions, strict=True)
        ],
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 2 and trainer.gradients[0].dtype == torch.float64


def test_a_compiled_model_is_scored_by_trl_and_drawn_from_uncompiled(tmp_path, caplog):
    """The shared path would be traced anew at every step: 50 s for one of this size."""
    options = {"torch_compile": True, "torch_compile_backend": "eager", "max_steps": 1}
    theirs = stock(tmp_path / "a", rollouts=scripted_rollouts(7), **options)
    theirs.train()
    with caplog.at_level(logging.WARNING):
        mine = ours(tmp_path / "b", rollouts=scripted_rollouts(7), weighting="none", **options)
        mine.train()
    assert torch.equal(weights(mine), weights(theirs))
    assert any("it is compiled" in record.message for record in caplog.records)
    with mine.sampler.generating() as model:
        assert type(mine.model_wrapped).__name__ == "OptimizedModule" and type(model) is type(mine.model)
