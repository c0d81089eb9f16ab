"""Attention by group against softmax written out row by row, and its gradient against numerical differences."""

import math

import pytest
import torch
from torch import Tensor

from covgrpo.forward import group_attention as module
from covgrpo.forward.group_attention import attend, attend_backward
from covgrpo.forward.rows_by_prompt import RowGroups

SCALING = 0.4


class Attention(torch.autograd.Function):
    """The two functions under autograd."""

    @staticmethod
    def forward(ctx, *inputs):
        *tensors, groups = inputs
        out = attend(*tensors, groups, SCALING)
        ctx.save_for_backward(*tensors, out)
        ctx.groups = groups
        return out

    @staticmethod
    def backward(ctx, grad):
        *tensors, out = ctx.saved_tensors
        grads = attend_backward(grad, out, *tensors, ctx.groups, SCALING)
        return *(x.to(like.dtype) for x, like in zip(grads, tensors, strict=True)), None


def group_attention(*inputs) -> Tensor:
    return Attention.apply(*inputs)


def by_loops(q: Tensor, k: Tensor, v: Tensor, pk: Tensor, pv: Tensor, prompt_of_row: list[int], mask: Tensor) -> Tensor:
    """One row, head and query at a time, in float64."""
    rows, heads, queries, _ = q.shape
    per_key_head = heads // k.shape[1]
    before = k.shape[2] - queries
    out = torch.zeros(*q.shape[:3], v.shape[-1], dtype=torch.float64)
    for row in range(rows):
        prompt = prompt_of_row[row]
        for head in range(heads):
            kv = head // per_key_head
            for t in range(queries):
                valid = [i for i in range(pk.shape[2]) if mask[prompt, i]]
                keys = [pk[prompt, kv, i] for i in valid] + [k[row, kv, i] for i in range(before + t + 1)]
                values = [pv[prompt, kv, i] for i in valid] + [v[row, kv, i] for i in range(before + t + 1)]
                scores = [SCALING * float((q[row, head, t].double() * key.double()).sum()) for key in keys]
                top = max(scores)
                weights = [math.exp(score - top) for score in scores]
                total = sum(weights)
                for weight, value in zip(weights, values, strict=True):
                    out[row, head, t] += weight / total * value.double()
    return out


CASES = {  # prompt of each row, valid prompt tokens of each prompt, queries, own tokens
    "even": ([0, 0, 1, 1], [5, 5], 3, 3),
    "one prompt": ([0, 0, 0], [4], 2, 2),
    "uneven and unordered": ([2, 0, 2, 2, 1], [5, 3, 4], 3, 3),
    "a prompt without rows": ([0, 2, 2], [5, 2, 5], 2, 2),
    "decoding": ([1, 0, 1], [5, 4], 1, 6),
    "several tokens after others": ([0, 1, 1], [3, 5], 3, 5),
    "nothing shared": ([0, 0], [0], 3, 3),
}


def tensors(case: str, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], RowGroups, list[int], Tensor]:
    rows, lengths, queries, own = CASES[case]
    torch.manual_seed(0)
    key_heads, per_key_head, size = 2, 3, 4
    shapes = [(len(rows), key_heads * per_key_head, queries, size)] + [(len(rows), key_heads, own, size)] * 2
    shapes += [(len(lengths), key_heads, max(lengths), size)] * 2
    mask = torch.tensor([[0] * (max(lengths) - n) + [1] * n for n in lengths])
    return [torch.randn(shape, dtype=dtype) for shape in shapes], RowGroups.of(torch.tensor(rows), mask), rows, mask


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("at_once", [1, 1 << 24])
def test_equals_softmax_by_loops(case, at_once, monkeypatch):
    monkeypatch.setattr(module, "_SCORES_AT_ONCE", at_once)  # 1: a block for every query
    inputs, groups, rows, mask = tensors(case)
    found = group_attention(*inputs, groups)
    torch.testing.assert_close(found, by_loops(*inputs, rows, mask), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("at_once", [1, 1 << 24])
def test_gradient(case, at_once, monkeypatch):
    monkeypatch.setattr(module, "_SCORES_AT_ONCE", at_once)
    inputs, groups, _, _ = tensors(case)
    for x in inputs:
        x.requires_grad_()
    assert torch.autograd.gradcheck(lambda *args: group_attention(*args, groups), inputs)


def test_padding_of_prompts_changes_nothing():
    inputs, groups, _, mask = tensors("uneven and unordered")
    padded = [x.clone() for x in inputs]
    for tensor in padded[3:]:
        tensor[~mask.bool()[:, None, :, None].expand_as(tensor)] = 1e3
    for x in (*inputs, *padded):
        x.requires_grad_()
    outputs = [group_attention(*given, groups) for given in (inputs, padded)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    for a, b in zip(inputs, padded, strict=True):
        assert torch.equal(a.grad, b.grad)
    assert (inputs[3].grad[~mask.bool()[:, None, :, None].expand_as(inputs[3])] == 0).all()


def test_bfloat16_rounds_only_at_the_ends():
    inputs, groups, rows, mask = tensors("uneven and unordered", torch.bfloat16)
    expected = by_loops(*inputs, rows, mask)
    found = group_attention(*inputs, groups)
    assert found.dtype == torch.bfloat16
    assert (found.double() - expected).abs().max() < 0.02


def test_the_same_bits_every_time():
    results = []
    for _ in range(3):
        inputs, groups, _, _ = tensors("uneven and unordered", torch.float32)
        for x in inputs:
            x.requires_grad_()
        group_attention(*inputs, groups).square().sum().backward()
        results.append([x.grad for x in inputs])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
