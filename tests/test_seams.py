"""The private methods of pinned libraries that are overridden or called: an upgrade that moves them fails here."""

import inspect
import typing
import warnings
from pathlib import Path

import pytest
import torch
import trl
import trl.trainer.utils as trl_utils
from tiny import tiny_model
from transformers.cache_utils import DynamicLayer
from trl import GRPOConfig, GRPOTrainer
from trl.trainer import grpo_trainer
from trl.trainer.utils import add_fused_lm_head, shuffle_sequence_dict, split_tensor_dict

import covgrpo
from covgrpo.forward import TiledVocabularyHead, attending_by
from covgrpo.forward.attention_interface import checkpoints, recomputes
from covgrpo.rollouts import SamplingSettings, sample, why_not_sampled


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_version_range():
    assert trl.__version__.startswith("1.16.")


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("_compute_loss", ["self", "model", "inputs"]),
        ("_generate_and_score_completions", ["self", "inputs"]),
        ("_calculate_rewards", ["self", "inputs", "prompts", "completions", "completion_ids_list"]),
        ("_prepare_inputs", ["self", "generation_batch"]),
        (
            "_generate_single_turn",
            ["self", "prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images"],
        ),
    ],
)
def test_overridden_methods_have_the_expected_signature(method, expected):
    assert parameters(getattr(GRPOTrainer, method)) == expected


def test_the_trainer_takes_trls_arguments():
    """By position and by name, with the same defaults; only the type of ``args`` is ours."""
    from covgrpo.trl import CovGRPOTrainer

    theirs, mine = (inspect.signature(each.__init__).parameters for each in (GRPOTrainer, CovGRPOTrainer))
    assert [(p.name, p.default, p.kind) for p in mine.values()] == [
        (p.name, p.default, p.kind) for p in theirs.values()
    ]
    assert all(p.annotation not in (inspect.Parameter.empty, "Any", typing.Any) for p in [*mine.values()][1:])


def test_the_trainer_hands_each_argument_on_under_its_own_name(monkeypatch):
    from covgrpo.trl import CovGRPOConfig, CovGRPOTrainer

    signature, seen = inspect.signature(GRPOTrainer.__init__), {}

    def init(self, *args, **kwargs):
        seen.update(signature.bind(self, *args, **kwargs).arguments)
        raise InterruptedError

    monkeypatch.setattr(GRPOTrainer, "__init__", init)
    names = [*signature.parameters][1:]
    given = {name: object() for name in names} | {"args": CovGRPOConfig("out", use_cpu=True, bf16=False)}
    for args, kwargs in ((given.values(), {}), ((), given)):
        seen.clear()
        with pytest.raises(InterruptedError):
            CovGRPOTrainer(*args, **kwargs)
        assert {name: seen[name] for name in names} == given


def test_scoring_seam_starts_with_the_expected_parameters():
    names = parameters(GRPOTrainer._get_per_token_logps_and_entropies)
    assert names[:8] == [
        "self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy",
        "compute_aux_loss",
    ]  # fmt: skip


def test_multimodal_fields_are_all_known():
    """They are passed on by name when the weights need a scoring pass; scoring's other arguments are no fields."""
    from covgrpo.trl.rollout import MULTIMODAL

    names = parameters(GRPOTrainer._get_per_token_logps_and_entropies)
    assert set(names) == MULTIMODAL and {"pixel_values", "image_grid_thw"} < set(names[8:])
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert not [name for name in names[:8] if f'output["{name}"]' in source or f'    "{name}":' in source]


def test_the_loss_takes_token_advantages_and_reads_these_inputs():
    source = inspect.getsource(GRPOTrainer._compute_loss)
    assert "if advantages.dim() == 1:" in source
    assert 'inputs.get("old_per_token_logps")' in source
    assert source.index("_get_per_token_logps_and_entropies") < source.index('inputs["advantages"]')


def test_the_generation_batch_is_whole_and_rank_local_before_the_shuffle():
    source = inspect.getsource(GRPOTrainer._prepare_inputs)
    order = [
        "_generate_and_score_completions", "shuffle_sequence_dict(generation_batch)", "split_tensor_dict",
        "_buffered_inputs = [", "self._buffered_inputs[self._step % self.args.steps_per_generation]",
    ]  # fmt: skip
    positions = [source.index(text) for text in order]
    assert positions == sorted(positions)


def test_advantages_are_sliced_by_process():
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert "self.accelerator.process_index * len(prompts)" in source
    assert 'output["sampling_per_token_logps"] = sampling_per_token_logps' in source
    assert "std_rewards + 1e-4" in source


def test_attributes_that_are_read():
    source = inspect.getsource(GRPOTrainer)
    for name in (
        "self._entropy_bonus_enabled", "self.aux_loss_enabled", "self.top_entropy_quantile", "self.generation_kwargs",
        "self.eos_token_ids", "self.use_transformers_continuous_batching", "self.multi_objective_aggregation",
        "self._buffered_inputs", 'self._metrics[mode]["entropy"]', 'self._logs["completion"]',
    ):  # fmt: skip
        assert name in source, name
    assert {"profiling_context", "unwrap_model_for_generation"} <= set(vars(grpo_trainer))


def test_rows_travel_together_through_shuffle_and_split():
    batch = {"rows": torch.arange(8), "wide": torch.arange(8)[:, None].expand(8, 3), "scalar": torch.tensor(5)}
    shuffled = shuffle_sequence_dict(batch)
    assert torch.equal(shuffled["rows"], shuffled["wide"][:, 0])
    parts = split_tensor_dict(shuffled, 4)
    assert [len(part["rows"]) for part in parts] == [2] * 4
    assert all(torch.equal(part["rows"], part["wide"][:, 1]) and part["scalar"] == 5 for part in parts)


def test_fused_head_scores_given_positions():
    """`shift_labels` are scored without shifting, and extra keywords reach the backbone."""
    model = tiny_model()
    add_fused_lm_head(model, temperature=2.0, outputs=("log_probs", "entropy"))
    ids = torch.tensor([[5, 6, 7, 8]])
    output = model(input_ids=ids, shift_labels=torch.tensor([[6, 7, 8, -100]]), fused_lm_head=True)
    expected = (model(input_ids=ids).logits[0, :3] / 2.0).log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    torch.testing.assert_close(output.log_probs[0, :3], expected, rtol=1e-5, atol=1e-5)
    assert output.entropy.shape == (1, 4)
    backbone, seen = model.base_model, {}
    forward = backbone.forward
    backbone.forward = lambda *args, shared_prompt=None, **kw: (seen.update(it=shared_prompt), forward(*args, **kw))[1]
    model(input_ids=ids, shift_labels=ids, fused_lm_head=True, shared_prompt="batch")
    assert seen == {"it": "batch"}


def test_our_head_takes_what_trls_takes():
    theirs, mine = (
        list(inspect.signature(head.forward).parameters)
        for head in (trl_utils._ChunkedLogProbFunction, TiledVocabularyHead)
    )
    assert len(theirs) == len(mine) == 10
    assert theirs[:6] == ["ctx", "hidden", "weight", "bias", "targets", "temperature"] == mine[:6]
    assert theirs[6:] == ["chunk_size", "final_logit_softcapping", "logit_scale", "outputs"]
    assert trl_utils._use_triton(torch.device("cpu")) is False


def test_an_attention_without_a_mask_function_gets_no_mask_and_the_layers_keywords():
    """Our attention knows who sees whom; transformers must neither build a mask for it nor drop the call."""
    model, seen = tiny_model(), []

    class Plain:
        def attend(self, query, key, value, scaling):
            seen.append((query.shape, key.shape, scaling))
            return query

    with attending_by(Plain(), model.config):
        model.model(input_ids=torch.tensor([[5, 6, 7]]), position_ids=torch.tensor([[0, 1, 2]]), use_cache=False)
    heads, layers = model.config.num_attention_heads, model.config.num_hidden_layers
    size = model.config.hidden_size // heads
    key_shape = (1, model.config.num_key_value_heads, 3, size)
    assert seen == [((1, heads, 3, size), key_shape, size**-0.5)] * layers
    assert model.config._attn_implementation == "sdpa"


def test_checkpointing_is_told_by_a_mark_that_every_version_sets():
    """transformers 5.20 has no `is_activation_checkpointing`, and 5.23 warns of `is_gradient_checkpointing`."""
    model = tiny_model()
    assert not checkpoints(model) and not recomputes(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert checkpoints(model) and recomputes(model)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    assert checkpoints(model) and not recomputes(model)
    model.gradient_checkpointing_disable()
    assert not checkpoints(model)
    for path in Path(covgrpo.__file__).parent.rglob("*.py"):
        assert "is_activation_checkpointing" not in path.read_text(encoding="utf-8"), path


def test_cache_layers_hold_keys_and_values():
    layer = DynamicLayer()
    keys = torch.randn(2, 1, 3, 4)
    layer.update(keys, keys + 1)
    layer.update(keys, keys + 1)
    assert layer.keys.shape == (2, 1, 6, 4)
    layer.batch_select_indices(torch.tensor([1]))
    assert torch.equal(layer.keys[0, :, :3], keys[1])


def test_the_sampler_serves_the_librarys_models_without_an_old_name():
    """Where an argument of forward is renamed, a run would go on by TRL's own path, slowly, and none by `evaluate`."""
    assert why_not_sampled(tiny_model()) is None
    settings = SamplingSettings(max_new_tokens=2, eos_token_ids=(2,), pad_token_id=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(tiny_model(), [[5, 6, 7], [5, 6, 8]], settings)


def test_config_defaults_of_trl_are_kept():
    """Only what follows the machine differs from TRL's defaults."""
    import dataclasses

    from covgrpo.trl import CovGRPOConfig

    theirs = {f.name: f.default for f in dataclasses.fields(GRPOConfig)}
    mine = {f.name: f.default for f in dataclasses.fields(CovGRPOConfig)}
    changed = {name for name, default in theirs.items() if mine[name] != default}
    assert changed == {"use_cpu", "gradient_checkpointing"}
    ours = {"weighting", "weighting_kwargs", "weighting_scope", "fast_path", "entropy_probe_steps"}
    assert set(mine) - set(theirs) == ours
