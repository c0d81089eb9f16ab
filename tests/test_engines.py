"""The adapters of other engines, on objects with the engines' documented signatures; tinker's own where installed."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch

from covgrpo.core import gaussian_through_weights, gaussian_weights, get_weighting
from covgrpo.engines.skyrl import TokenWeightedAdvantages
from covgrpo.engines.tinker import WeightedPolicyGradient
from covgrpo.errors import UserError

B, T = 8, 6
UIDS = ["a", "b"] * 4
GROUP = torch.tensor([0, 1] * 4)


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logps = -3 * torch.rand(B, T, generator=generator)
    mask = (torch.arange(T)[None] < torch.randint(1, T + 1, (B, 1), generator=generator)).float()
    return logps, torch.randn(B, 1, generator=generator) * mask, mask


class RayPPOTrainer:
    """As skyrl.train.trainer.RayPPOTrainer at a9564572e: TensorBatch (a dict) with metadata in and out."""

    def __init__(self, loss_reduction="token_mean"):
        self.all_metrics = {}
        algorithm = SimpleNamespace(loss_reduction=loss_reduction)
        self.cfg = SimpleNamespace(trainer=SimpleNamespace(algorithm=algorithm))

    def compute_advantages_and_returns(self, data):
        data["advantages"] = data["returns"] = data.pop("rewards")
        return data


class Trainer(TokenWeightedAdvantages, RayPPOTrainer):
    pass


class Batch(dict):
    metadata: dict


def skyrl_batch(padding=0):
    """`padding` copies of row 0 whose loss mask is 0, under uids of their own, as SkyRL pads."""
    logps, A, mask = (torch.cat([x, x[:1].expand(padding, -1)]) for x in tensors())
    loss_mask = mask.clone()
    loss_mask[B:] = 0
    data = Batch(action_log_probs=logps, rewards=A, response_mask=mask.long(), loss_mask=loss_mask)
    data.metadata = {"uids": UIDS + [f"pad{i}" for i in range(padding)]}
    return data


@pytest.mark.parametrize("padding", [0, 3])
def test_skyrl_advantages_are_weighted_by_whole_groups(padding):
    logps, A, mask = tensors()
    trainer = Trainer()
    data = trainer.compute_advantages_and_returns(skyrl_batch(padding))
    expected = gaussian_weights(logps, A, mask, GROUP) * A
    torch.testing.assert_close(data["advantages"][:B], expected, rtol=1e-6, atol=1e-7)
    assert (data["advantages"][B:] == 0).all()
    assert torch.equal(data["returns"][:B], A)
    assert trainer.all_metrics["cov/sigma"] > 0


def test_skyrl_refuses_what_cannot_be_exact():
    data = skyrl_batch()
    data["action_log_probs"] = None
    with pytest.raises(UserError, match="skipped the policy's forward pass"):
        Trainer().compute_advantages_and_returns(data)
    penalising = type("KL", (Trainer,), {"token_weighting": get_weighting("kl_cov")})
    with pytest.raises(UserError, match="penalty"):
        penalising().compute_advantages_and_returns(skyrl_batch())
    steered = type("Held", (Trainer,), {"token_weighting": get_weighting("hold_entropy")})
    with pytest.raises(UserError, match="neutral with a fixed kappa"):
        steered().compute_advantages_and_returns(skyrl_batch())


@pytest.mark.parametrize(
    ("reduction", "normaliser"),
    [("token_mean", "token"), ("sequence_mean", "completion"), ("seq_mean_token_sum_norm", "token")],
)
def test_skyrl_tells_the_weighting_what_its_loss_divides_by(reduction, normaliser):
    through = type("Through", (Trainer,), {"token_weighting": get_weighting("gaussian_through")})
    data = through(reduction).compute_advantages_and_returns(skyrl_batch())
    logps, A, mask = tensors()
    expected = gaussian_through_weights(logps, A, mask, GROUP, normaliser) * A
    torch.testing.assert_close(data["advantages"], expected, rtol=1e-6, atol=1e-7)
    with pytest.raises(UserError, match="loss_reduction=median does neither"):
        through("median").compute_advantages_and_returns(skyrl_batch())


class Tensor:
    """tinker.types.TensorData: what a loss reads of it."""

    def __init__(self, values):
        self.values = values

    def to_torch(self):
        return self.values


def prompted(make=Tensor, datum=lambda **inputs: SimpleNamespace(loss_fn_inputs=inputs)):
    """Datums of two prompt tokens and a ragged completion, and the server's log-probs."""
    logps, A, mask = tensors()
    data, logprobs = [], []
    for row in range(B):
        size = int(mask[row].sum())
        valid = torch.cat([torch.zeros(2), torch.ones(size)])
        advantages = torch.cat([torch.zeros(2), A[row, :size]])
        data.append(datum(target_tokens=make(torch.arange(2 + size)), advantages=make(advantages), mask=make(valid)))
        logprobs.append(torch.cat([torch.full((2,), -7.0), logps[row, :size]]))
    return data, logprobs


def expected_weights():
    logps, A, mask = tensors()
    w = gaussian_weights(logps, A, mask, GROUP) * A
    return [torch.cat([torch.zeros(2), w[row, : int(mask[row].sum())]]) for row in range(B)]


def test_tinkers_gradient_is_minus_the_weighted_advantages():
    data, logprobs = prompted()
    leaves = [values.clone().requires_grad_() for values in logprobs]
    loss, metrics = WeightedPolicyGradient(UIDS)(data, leaves)
    loss.backward()
    for leaf, weighted in zip(leaves, expected_weights(), strict=True):
        torch.testing.assert_close(leaf.grad, -weighted, rtol=1e-6, atol=1e-7)
    assert metrics["weight/max"] > 1


def test_tinkers_weights_stay_over_later_updates():
    data, logprobs = prompted()
    loss = WeightedPolicyGradient(UIDS)
    loss(data, logprobs)
    moved = [(values - 0.5).requires_grad_() for values in logprobs]
    loss(data, moved)[0].backward()
    for leaf, weighted in zip(moved, expected_weights(), strict=True):
        torch.testing.assert_close(leaf.grad, -weighted * torch.exp(torch.tensor(-0.5)), rtol=1e-5, atol=1e-6)


def test_tinkers_loss_is_a_sum_over_tokens_to_the_weighting():
    data, logprobs = prompted()
    leaves = [values.clone().requires_grad_() for values in logprobs]
    WeightedPolicyGradient(UIDS, get_weighting("gaussian_through"))(data, leaves)[0].backward()
    logps, A, mask = tensors()
    expected = gaussian_through_weights(logps, A, mask, GROUP, "token") * A
    for row, leaf in enumerate(leaves):
        torch.testing.assert_close(leaf.grad[2:], -expected[row, : len(leaf) - 2], rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="a sum over tokens needs 'token'"):
        WeightedPolicyGradient(UIDS, get_weighting("gaussian_through", normaliser="completion"))


def test_tinkers_wrong_input_is_named():
    data, logprobs = prompted()
    with pytest.raises(ValueError, match="groups has 3 entries and data 8"):
        WeightedPolicyGradient(UIDS[:3])(data, logprobs)
    del data[2].loss_fn_inputs["mask"]
    with pytest.raises(ValueError, match=r"data\[2\].loss_fn_inputs has no 'mask'"):
        WeightedPolicyGradient(UIDS)(data, logprobs)
    with pytest.raises(ValueError, match="penalty"):
        WeightedPolicyGradient(UIDS, get_weighting("kl_cov"))
    with pytest.raises(ValueError, match="from batch to batch"):
        WeightedPolicyGradient(UIDS, get_weighting("hold_entropy"))


@pytest.mark.skipif(importlib.util.find_spec("tinker") is None, reason="tinker is not installed")
def test_installed_tinker_sends_the_weighted_advantages_to_the_server():
    """The client turns the loss's gradient into the weights of a linear loss."""
    import tinker
    from tinker import types
    from tinker.lib.public_interfaces.training_client import TrainingClient

    def datum(**inputs):
        return types.Datum(model_input=types.ModelInput.from_ints([1] * 8), loss_fn_inputs=inputs)

    data, logprobs = prompted(types.TensorData.from_torch, datum)
    outputs = [{"logprobs": types.TensorData.from_torch(values)} for values in logprobs]
    forward = SimpleNamespace(loss_fn_outputs=outputs)
    result = TrainingClient._compute_custom_loss(data, WeightedPolicyGradient(UIDS), forward)
    sent = next(field for field in vars(result).values() if isinstance(field, list))
    for linear, weighted in zip(sent, expected_weights(), strict=True):
        torch.testing.assert_close(linear.loss_fn_inputs["weights"].to_torch(), weighted, rtol=1e-6, atol=1e-7)
    assert tinker.__version__
