"""The fast path is exact: shared prompts and skipped rows change neither gradient nor logged metric."""

import logging

import pytest
import torch
from peft import LoraConfig
from tiny import tiny_config, tiny_model, tiny_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM
from trl_runs import beside_stock, logs, ours, relative, scripted_rollouts, stock, weights

from covgrpo.forward import (
    SharedPrompts,
    saves_enough,
    shareable,
    sharing_prompts,
    token_tree,
    why_not_shareable,
)
from covgrpo.forward.rows_by_prompt import for_rows
from covgrpo.trl import sampler, scorer

pytestmark = pytest.mark.slow

OPTIONS = [
    {},
    {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
    {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8, "steps_per_generation": 16},
    {"num_iterations": 3, "learning_rate": 1e-2},
    {"temperature": 0.7},
    {"beta": 0.1},
    {"entropy_coef": 0.01},
    {"top_entropy_quantile": 0.5},
    # Terms of a micro-batch as a whole: rows must stay in the one that TRL has dealt them to.
    {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "top_entropy_quantile": 0.2},
    {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "entropy_coef": 0.05},
    {"importance_sampling_level": "sequence", "loss_type": "grpo"},
    {"mask_truncated_completions": True},
    *({"loss_type": name} for name in ("bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo")),
    {"off_policy_mask_threshold": 0.5, "num_iterations": 2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_same_gradients_weights_and_metrics_as_stock(tmp_path, options):
    mine, theirs = beside_stock(tmp_path, **options)
    for step, (a, b) in enumerate(zip(mine.gradients, theirs.gradients, strict=True)):
        assert relative(a, b) < (1e-5 if step == 0 else 1e-4)
    assert relative(weights(mine), weights(theirs)) < 1e-5
    names = ["loss", "grad_norm", "reward", "frac_reward_zero_std"]
    if options.get("gradient_accumulation_steps", 1) == 1:
        names.append("entropy")  # TRL's is the mean of the micro-batches' means
    torch.testing.assert_close(
        torch.tensor(logs(mine, *names)), torch.tensor(logs(theirs, *names)), rtol=1e-4, atol=1e-6
    )


def test_a_batch_without_any_advantage_still_updates_like_stock(tmp_path):
    """AdamW's weight decay and momentum act on a zero gradient, not on none."""
    rollouts = {"constant_prompts": (0, 1, 2, 3)}
    options = {"weight_decay": 0.1, "max_steps": 2}
    theirs = stock(tmp_path / "a", rollouts=scripted_rollouts(7, **rollouts), **options)
    theirs.train()
    mine = ours(tmp_path / "b", rollouts=scripted_rollouts(7, **rollouts), **options)
    mine.train()
    assert mine.gradients[0].abs().max() == theirs.gradients[0].abs().max() == 0
    assert torch.equal(weights(mine), weights(theirs))


def test_rows_without_advantage_are_not_forwarded(tmp_path, monkeypatch):
    mine = ours(tmp_path, max_steps=1, reward_funcs=_reward_first_group_only)
    seen = []
    score = type(mine.scorer)._score_shared

    def counting(self, model, batch):
        seen.append((torch.is_grad_enabled(), len(batch.completion_ids), len(batch.prompt_ids)))
        return score(self, model, batch)

    monkeypatch.setattr(type(mine.scorer), "_score_shared", counting)
    mine.train()
    with_gradient = [(rows, prompts) for grad, rows, prompts in seen if grad]
    assert with_gradient == [(4, 1)]
    without = [rows for grad, rows, _ in seen if not grad]
    assert sum(without) <= 4, "beside the first-use check on 4 rows nothing is scored: the sampler's numbers serve"


def test_micro_batches_forward_each_prompt_once(tmp_path, monkeypatch):
    """4 prompts x 4 completions in micro-batches of 4: dealt by rows a micro-batch has up to 4 prompts."""
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "max_steps": 2}
    theirs = stock(tmp_path / "a", rollouts=scripted_rollouts(7), **options)
    theirs.train()
    mine = ours(tmp_path / "b", rollouts=scripted_rollouts(7), weighting="none", **options)
    seen, score = [], type(mine.scorer)._score_shared

    def counting(self, model, batch):
        seen.append((torch.is_grad_enabled(), len(batch.prompt_ids)))
        return score(self, model, batch)

    monkeypatch.setattr(type(mine.scorer), "_score_shared", counting)
    mine.train()
    assert [prompts for grad, prompts in seen if grad] == [1] * 8
    assert relative(mine.gradients[0], theirs.gradients[0]) < 1e-5
    assert relative(weights(mine), weights(theirs)) < 1e-5


def _reward_first_group_only(completions, **_):
    return [float(i % 2) if i < 4 else 0.0 for i in range(len(completions))]


def test_sampled_rollouts_train_as_stock_on_the_same_completions(tmp_path):
    """End to end with our sampler: its log-probs feed the weights, and stock on its completions agrees."""
    mine = ours(tmp_path / "a", weighting="none", max_steps=3)
    drawn = []
    sample = mine.sampler.sample

    def recording(prompt_ids):
        samples = sample(prompt_ids)
        drawn.append(samples.token_ids)
        return samples

    mine.sampler.sample = recording
    mine.train()
    replay = iter(drawn)
    theirs = stock(tmp_path / "b", rollouts=lambda *args, **kwargs: (next(replay), None), max_steps=3)
    theirs.train()
    for a, b in zip(mine.gradients, theirs.gradients, strict=True):
        assert relative(a, b) < 1e-4
    torch.testing.assert_close(
        torch.tensor(logs(mine, "entropy", "loss")), torch.tensor(logs(theirs, "entropy", "loss")), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("fused_kernels", [False, True])  # True: as on accelerators
@pytest.mark.parametrize("on_policy", [True, False])
def test_gradient_checkpointing_shares_the_prompts_all_the_same(
    tmp_path, caplog, monkeypatch, on_policy, fused_kernels
):
    monkeypatch.setattr(token_tree, "_by_fused_kernels", lambda device: fused_kernels)
    options = {"gradient_checkpointing": True, "max_steps": 3, "num_iterations": 1 if on_policy else 2}
    theirs = stock(tmp_path / "a", rollouts=scripted_rollouts(7), **options)
    theirs.train()
    with caplog.at_level(logging.WARNING):
        mine = ours(tmp_path / "b", rollouts=scripted_rollouts(7), weighting="none", **options)
        mine.train()
    assert relative(mine.gradients[0], theirs.gradients[0]) < 1e-5
    assert relative(weights(mine), weights(theirs)) < 1e-5
    assert set(mine.scorer.first_use.values()) == {None}
    assert not [record for record in caplog.records if "own copy of the prompt" in record.message]
    assert mine.model.config._attn_implementation == "sdpa"


def test_reentrant_checkpointing_falls_back_and_says_so_once(tmp_path, caplog):
    options = {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": True},
        "max_steps": 2,
    }
    theirs = stock(tmp_path / "a", rollouts=scripted_rollouts(7), **options)
    theirs.train()
    with caplog.at_level(logging.WARNING):
        mine = ours(tmp_path / "b", rollouts=scripted_rollouts(7), weighting="none", **options)
        mine.train()
    assert relative(weights(mine), weights(theirs)) < 1e-6
    said = [record.message for record in caplog.records if "gradient checkpointing" in record.message]
    assert len(said) == 1


@pytest.mark.parametrize(("dropout", "shares"), [(0.0, True), (0.1, False)])
def test_lora(tmp_path, dropout, shares):
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=dropout, init_lora_weights=False)
    options = {"peft_config": lora, "max_steps": 2, "beta": 0.05}
    theirs = stock(tmp_path / "a", rollouts=scripted_rollouts(7), **options)
    theirs.train()
    mine = ours(tmp_path / "b", rollouts=scripted_rollouts(7), weighting="none", **options)
    mine.train()
    assert (mine.scorer.why_not_shareable(mine.model) is None) == shares
    if shares:
        assert relative(mine.gradients[0], theirs.gradients[0]) < 1e-5
        assert relative(weights(mine), weights(theirs)) < 1e-5


def test_sliding_window_models_fall_back(tmp_path):
    config = {k: v for k, v in tiny_config().to_dict().items() if k in _SHARED_FIELDS}
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**config, sliding_window=8))
    assert "sliding-window" in why_not_shareable(model)
    mine = ours(tmp_path, model=model, rollouts=scripted_rollouts(7), weighting="none", max_steps=1)
    mine.train()
    assert mine.gradients[0].abs().max() > 0


_SHARED_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "max_position_embeddings", "pad_token_id", "eos_token_id", "tie_word_embeddings"),
)


def test_learned_positions_are_those_of_stock(tmp_path):
    """GPT-2's positions are absolute: padding shifts them in TRL, and must shift them here alike."""
    config = GPT2Config(
        vocab_size=tiny_config().vocab_size, n_embd=32, n_layer=2, n_head=4, n_positions=128, pad_token_id=0,
        eos_token_id=2, bos_token_id=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    trainers = []
    for make, folder, extra in ((stock, "a", {}), (ours, "b", {"weighting": "none"})):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config)
        trainer = make(tmp_path / folder, model=model, rollouts=scripted_rollouts(7), max_steps=2, **extra)
        trainer.train()
        trainers.append(trainer)
    theirs, mine = trainers
    assert set(mine.scorer.first_use.values()) == {None}
    assert relative(mine.gradients[0], theirs.gradients[0]) < 1e-5


def test_a_wrong_shared_path_is_noticed_on_first_use(tmp_path, caplog, monkeypatch):
    def broken(cls, input_ids, attention_mask, completion_length):
        batch = original(input_ids, attention_mask, completion_length)
        return SharedPrompts(batch.prompt_ids.flip(1), *list(vars(batch).values())[1:])

    original = SharedPrompts.from_rows
    monkeypatch.setattr(SharedPrompts, "from_rows", classmethod(broken))
    with caplog.at_level(logging.WARNING):
        mine = ours(tmp_path, rollouts=scripted_rollouts(7), max_steps=1)
        mine.train()
    assert any("differ by" in record.message for record in caplog.records)
    assert "differ by" in next(iter(mine.scorer.first_use.values()))


@pytest.mark.parametrize(("precision", "served"), [("highest", False), ("high", True)])
def test_the_checks_on_first_use_allow_for_tf32(tmp_path, monkeypatch, precision, served):
    """With float32's own bounds out of reach, only those of lower precision let the fast path pass."""
    monkeypatch.setitem(scorer._TOLERANCE, torch.float32, -1.0)
    monkeypatch.setattr(sampler, "_TOLERANCE", -1.0)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        mine = ours(tmp_path, max_steps=1)
        mine.train()
    finally:
        torch.set_float32_matmul_precision(before)
    assert (mine.sampler.checked, mine.sampler.refused is None) == (served, served)
    assert [reason is None for reason in mine.scorer.first_use.values()] == [served]


def test_distinct_prompts_are_found_whatever_the_order_and_padding():
    ids = torch.tensor([[0, 5, 6, 9, 9], [7, 5, 6, 8, 8], [0, 5, 6, 7, 7], [0, 0, 6, 1, 1]])
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 0], [0, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    ids[2, 0] = 99  # what stands in padding does not matter
    batch = SharedPrompts.from_rows(ids, mask, 2)
    assert len(batch.prompt_ids) == 3
    rebuilt = batch.prompt_ids[batch.prompt_of_row] * batch.prompt_mask[batch.prompt_of_row]
    assert torch.equal(rebuilt, (ids * mask)[:, :3])
    assert batch.prompt_of_row[0] == batch.prompt_of_row[2]


PROMPTS = {
    "ragged": [(4,), (5, 6, 7), (8, 9)],
    "one begins like another": [(4,), (4, 5, 6)],
    "equally long": [(5,), (6,), (7,)],
    "alone": [(4, 5)],
    "nothing in common": [(4, 5), (6, 7, 8)],
}


@pytest.mark.parametrize("own", PROMPTS)
@pytest.mark.parametrize("completions", [((40, 41, 42), (43, 44), (45,)), ((40,), (41,))], ids=["ragged", "one token"])
@pytest.mark.parametrize("how", ["of the CPU", "by fused kernels"])
def test_shared_tokens_change_no_hidden_state_and_no_gradient(own, completions, how, monkeypatch):
    """Against each row forwarded alone without padding."""
    if how == "by fused kernels":  # as on accelerators
        monkeypatch.setattr(token_tree, "_by_fused_kernels", lambda device: True)
    model = tiny_model(scale=4.0)
    prefix = () if own == "nothing in common" else tuple(range(20, 31))
    rows = [(p, c) for p in (prefix + o for o in PROMPTS[own]) for c in completions]
    longest, width = max(len(p) for p, _ in rows), max(map(len, completions))
    ids = torch.tensor([[0] * (longest - len(p)) + [*p, *c] + [0] * (width - len(c)) for p, c in rows])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p + c) + [0] * (width - len(c)) for p, c in rows])
    expected = torch.cat([model.model(torch.tensor([p + c])).last_hidden_state[0, len(p) - 1 : -1] for p, c in rows])
    weight = torch.randn(expected.shape)
    (expected * weight).sum().backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()

    seen = []
    embed = model.model.embed_tokens.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    with sharing_prompts(model.model):
        hidden = model.model(shared_prompt=SharedPrompts.from_rows(ids, mask, width)).last_hidden_state[0]
    embed.remove()
    # Every token once: the prefix, the prompts' rests, all but the last token of each completion.
    fed = len(PROMPTS[own]) * sum(len(c) - 1 for c in completions)
    assert seen == [(1, len(prefix) + sum(map(len, PROMPTS[own])) + fed)]
    torch.testing.assert_close(hidden, expected, rtol=1e-5, atol=1e-5)
    (hidden * weight).sum().backward()
    assert relative(torch.cat([p.grad.flatten() for p in model.parameters()]), gradients) < 1e-5


def test_gradients_of_shared_prompts_add_up_in_order_and_in_float32():
    """Thirty-two bf16 gradients a prompt, on all threads: the same bits every time, and no digits lost."""
    torch.manual_seed(0)
    prompts = torch.randn(4, 3, 40, 64, dtype=torch.bfloat16, requires_grad=True)
    row = torch.arange(4).repeat_interleave(32)[torch.randperm(128)]
    grad = torch.randn(128, 3, 40, 64, dtype=torch.bfloat16)
    runs = []
    for _ in range(20):
        prompts.grad = None
        for_rows(prompts, row).backward(grad)
        runs.append(prompts.grad)
    assert all(torch.equal(run, runs[0]) for run in runs)
    exact = torch.stack([grad[row == p].double().sum(dim=0) for p in range(4)])
    assert (runs[0] - exact).abs().max() < 0.07  # half a bf16 step at the largest sums
    # Plain indexing adds in bf16: visibly further off.
    prompts.grad = None
    prompts[row].backward(grad)
    assert (prompts.grad - exact).norm() > 1.5 * (runs[0] - exact).norm()


def test_scope_batch_does_not_depend_on_the_split(tmp_path):
    results = []
    for index, options in enumerate(
        (
            {"per_device_train_batch_size": 16},
            {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
            {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 16},
        )
    ):
        mine = ours(tmp_path / str(index), rollouts=scripted_rollouts(7), weighting_scope="batch", **options)
        mine.train()
        results.append(weights(mine))
    grouped = ours(tmp_path / "g", rollouts=scripted_rollouts(7))
    grouped.train()
    assert all(relative(result, results[0]) < 1e-5 for result in results)
    assert relative(weights(grouped), results[0]) > 1e-4


def test_tiny_model_is_not_degenerate():
    """The comparisons above mean something: the tiny policy is neither uniform nor certain."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    logits = model(torch.tensor([tokenizer("q12?")["input_ids"]])).logits[0, -1]
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    assert 1.0 < entropy < 4.3


def test_prompts_are_shared_where_it_saves_enough_for_the_device(tmp_path, monkeypatch):
    """Elsewhere the rows are scored as in TRL, to the last bit."""
    paths = []
    original = scorer.Scorer._score_shared
    monkeypatch.setattr(scorer.Scorer, "_score_shared", lambda *args: paths.append("shared") or original(*args))
    options = {"max_steps": 2, "weighting": "none"}
    for least, expected in ((0.0, {"shared"}), (torch.inf, set())):
        paths.clear()
        monkeypatch.setattr(shareable, "_LEAST_SAVED_A_LAYER", {"cpu": least})
        mine = ours(tmp_path / str(least), rollouts=scripted_rollouts(7), **options)
        mine.train()
        assert set(paths) == expected
    theirs = stock(tmp_path / "theirs", rollouts=scripted_rollouts(7), max_steps=2)
    theirs.train()
    assert torch.equal(weights(mine), weights(theirs))


def test_what_sharing_saves_is_counted_in_tokens_times_weights_of_a_layer(monkeypatch):
    model = tiny_model(num_hidden_layers=2)
    of_a_layer = sum(p.numel() for layer in model.model.layers for p in layer.parameters()) / 2
    prompts, completions = torch.ones(1, 5), torch.tensor([[1, 1, 0], [1, 0, 0]])
    mask = torch.cat([prompts.expand(2, -1), completions], dim=1)
    saved = 2 * 8 - (5 + 3)
    for least, pays in ((saved * of_a_layer, True), (saved * of_a_layer * 1.1, False)):
        monkeypatch.setattr(shareable, "_LEAST_SAVED_A_LAYER", {"cpu": least})
        assert saves_enough(model.model, mask, prompts, completions) is pays
