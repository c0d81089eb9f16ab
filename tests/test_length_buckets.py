"""Completions are forwarded in buckets of similar length: fewer tokens, the same hidden states and gradients."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model
from trl_runs import logs, ours, relative, scripted_rollouts, stock, weights

from covgrpo.forward import SharedPrompts, shared_prompt, sharing_prompts
from covgrpo.forward.length_buckets import length_buckets


def cheapest(lengths: list[int], cost: int) -> int:
    """The least cost by trying every set of bounds."""
    longest, inner = max(lengths), sorted(set(lengths) - {max(lengths)})
    totals = []
    for count in range(len(inner) + 1):
        for bounds in itertools.combinations(inner, count):
            widths = [next(b for b in (*bounds, longest) if b >= length) for length in lengths]
            totals.append(sum(widths) + cost * len(set(widths)))
    return min(totals)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.sampled_from([0, 1, 5, 32, 4096]))
def test_buckets_are_the_cheapest(lengths: list[int], cost: int) -> None:
    buckets = length_buckets(torch.tensor(lengths), cost)
    rows = torch.cat([rows for rows, _ in buckets])
    assert sorted(rows.tolist()) == list(range(len(lengths)))
    for inside, width in buckets:
        assert width == max(lengths[row] for row in inside.tolist())
    total = sum(len(inside) * width + cost for inside, width in buckets)
    assert total == cheapest(lengths, cost)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=200))
def test_long_rows_are_padded_by_a_32nd_at_most_where_forwards_are_free(lengths: list[int]) -> None:
    buckets = length_buckets(torch.tensor(lengths), 0)
    assert len(buckets) <= 33
    slack = -(-max(lengths) // 32)
    for inside, width in buckets:
        assert all(width - lengths[row] < max(slack, 1) for row in inside.tolist())


@pytest.fixture
def in_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of models that take no attention of ours: prompts, then completions on copies of their caches."""
    monkeypatch.setattr(shared_prompt, "takes_our_attention", lambda model: False)


def test_buckets_change_no_hidden_state_and_no_gradient(monkeypatch: pytest.MonkeyPatch, in_stages: None) -> None:
    torch.manual_seed(0)
    model = tiny_model(scale=4.0)
    lengths = torch.tensor([9, 1, 4, 0, 9, 2, 1, 5])
    mask = (torch.arange(9) < lengths[:, None]).long()
    prompt = torch.randint(3, 60, (2, 6))[torch.arange(8) % 2]
    ids = torch.cat([prompt, torch.randint(3, 60, (8, 9)) * mask], dim=1)
    batch = SharedPrompts.from_rows(ids, torch.cat([torch.ones_like(prompt), mask], dim=1), 9)
    weight = torch.randn(int(lengths.sum()), 32)
    results, fed = [], []
    for cost in (0, 10**9):
        monkeypatch.setattr(shared_prompt, "_BUCKET_COST", {"cpu": cost})
        seen: list[tuple[int, ...]] = []
        hook = model.model.embed_tokens.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].shape))
        with sharing_prompts(model.model):
            hidden = model.model(shared_prompt=batch).last_hidden_state[0]
        hook.remove()
        model.zero_grad()
        (hidden * weight).sum().backward()
        results.append((hidden, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
        fed.append(sum(rows * tokens for rows, tokens in seen[1:]))
    assert fed == [int((lengths - 1).clamp(min=0).sum()), 8 * 8]  # nothing padded; all padded to the longest
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-5)
    assert relative(results[0][1], results[1][1]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"beta": 0.1}, {"num_iterations": 3, "learning_rate": 1e-2}, {"mask_truncated_completions": True}],
    ids=str,
)
def test_same_gradients_weights_and_metrics_as_stock_in_many_buckets(tmp_path, monkeypatch, in_stages, options) -> None:
    monkeypatch.setattr(shared_prompt, "_BUCKET_COST", {"cpu": 0})
    rollouts = {"constant_prompts": (0, 2)}
    theirs = stock(tmp_path / "a", rollouts=scripted_rollouts(7, **rollouts), **options)
    theirs.train()
    mine = ours(tmp_path / "b", rollouts=scripted_rollouts(7, **rollouts), weighting="none", **options)
    mine.train()
    assert set(mine.scorer.first_use.values()) == {None}, "the shared path was not used"
    assert relative(mine.gradients[0], theirs.gradients[0]) < 1e-5
    assert relative(weights(mine), weights(theirs)) < 1e-5
    names = ["loss", "grad_norm", "reward", "entropy"]
    torch.testing.assert_close(
        torch.tensor(logs(mine, *names)), torch.tensor(logs(theirs, *names)), rtol=1e-4, atol=1e-6
    )
