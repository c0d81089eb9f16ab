"""Our vocabulary head against plain log-softmax under autograd, and against TRL's head."""

import pytest
import torch
import trl.trainer.utils as trl_utils
from torch import Tensor

from covgrpo.forward import TiledVocabularyHead, tiled_head
from covgrpo.trl.fused_head import tiled_vocabulary_head

M, V, H = 7, 11, 5
VARIANTS = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "bias": {"bias": True},
    "softcap": {"softcap": 2.0},
    "all": {"temperature": 1.3, "bias": True, "softcap": 1.5, "logit_scale": 0.6},
}
BUDGETS = {
    "all kept": (1 << 30, 1 << 30),
    "one tile": (1 << 30, 0),
    "tiles": (4 * V * 2, 0),
    "some kept": (4 * V * 2, 8 * V * 4),
}


def inputs(dtype: torch.dtype = torch.float64, scale: float = 1.0, bias: bool = False, **_: object) -> list:
    torch.manual_seed(0)
    hidden, weight = (torch.randn(n, H, dtype=dtype).mul_(scale).requires_grad_() for n in (M, V))
    return [hidden, weight, torch.randn(V, dtype=dtype).requires_grad_() if bias else None, torch.randint(V, (M,))]


def plainly(
    hidden, weight, bias, targets, temperature=1.0, softcap=None, logit_scale=1.0, **_
) -> tuple[Tensor, Tensor]:
    z = torch.nn.functional.linear(hidden, weight, bias) * logit_scale
    z = (z if softcap is None else softcap * torch.tanh(z / softcap)) / temperature
    log_p = z.log_softmax(dim=1)
    return log_p.gather(1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(dim=1)


def tiled(hidden, weight, bias, targets, temperature=1.0, softcap=None, logit_scale=1.0, function=TiledVocabularyHead):
    return function.apply(
        hidden, weight, bias, targets, temperature, 4, softcap, logit_scale, ("log_probs", "entropy")
    )[:2]


def options(variant: str) -> dict:
    return {name: value for name, value in VARIANTS[variant].items() if name != "bias"}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("of", ["logps", "entropy", "both"])
def test_values_and_gradients(variant, budget, of, monkeypatch):
    tile, kept = BUDGETS[budget]
    monkeypatch.setattr(tiled_head, "_TILE_BYTES", tile)
    monkeypatch.setattr(tiled_head, "_KEPT_BYTES", kept)
    results = []
    for head in (plainly, tiled):
        given = inputs(**VARIANTS[variant])
        logps, entropy = head(*given, **options(variant))
        weights = torch.linspace(-1, 2, M, dtype=torch.float64)
        terms = {"logps": logps, "entropy": entropy, "both": logps + 0.3 * entropy.square()}
        (weights * terms[of]).sum().backward()
        results.append([logps, entropy, *(x.grad for x in given if x is not None and x.requires_grad)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_frozen_head_and_a_frozen_body():
    for frozen in (0, 1):
        results = []
        for head in (plainly, tiled):
            given = inputs()
            given[frozen] = given[frozen].detach()
            logps, _ = head(*given)
            logps.sum().backward()
            assert given[frozen].grad is None
            results.append(given[1 - frozen].grad)
        torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-12)


def test_almost_certain_tokens_keep_their_gradient_in_bfloat16():
    """At p = 1 - 1e-4 the slope 1 - p is below what bfloat16 tells from 0 beside 1."""
    hidden = torch.tensor([[1.0]], dtype=torch.bfloat16, requires_grad=True)
    weight = torch.tensor([[4.5], [-4.7]], dtype=torch.bfloat16)
    logps = tiled(hidden, weight, None, torch.tensor([0]))[0]
    logps.sum().backward()
    z = weight.double() @ torch.tensor([1.0], dtype=torch.float64)
    expected = (1 - z.softmax(0)[0]) * (weight[0] - weight[1]).double()
    assert abs(hidden.grad.item() / expected.item() - 1) < 0.02


def test_equals_trls_head_in_float32():
    results = []
    for function in (trl_utils._ChunkedLogProbFunction, TiledVocabularyHead):
        given = inputs(torch.float32, bias=True)
        logps, entropy = tiled(*given, temperature=0.8, function=function)
        (logps * torch.linspace(-1, 1, M) + entropy).sum().backward()
        results.append([logps, entropy, *(x.grad for x in given[:3])])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_no_tokens():
    given = inputs()
    given[0], given[3] = given[0].detach()[:0].requires_grad_(), given[3][:0]
    logps, entropy = tiled(*given)
    assert logps.shape == entropy.shape == (0,)
    logps.sum().backward()
    assert given[0].grad.shape == (0, H)


def test_other_outputs_are_refused():
    with pytest.raises(ValueError, match="is_top1"):
        TiledVocabularyHead.apply(*inputs(), 1.0, 4, None, 1.0, ("log_probs", "is_top1"))


def test_trls_head_is_put_back():
    stock = trl_utils._ChunkedLogProbFunction
    with pytest.raises(RuntimeError, match="inside"), tiled_vocabulary_head(torch.device("cpu")):
        assert trl_utils._ChunkedLogProbFunction is TiledVocabularyHead
        raise RuntimeError("inside")
    assert trl_utils._ChunkedLogProbFunction is stock
