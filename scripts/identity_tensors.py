"""What identity_record.py records without training: the core, the metrics, and the engines that see whole batches."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from covgrpo.core import WEIGHTINGS, get_weighting, token_covariance
from covgrpo.engines.entropy import EntropyHold
from covgrpo.engines.skyrl import TokenWeightedAdvantages
from covgrpo.engines.tinker import WeightedPolicyGradient
from covgrpo.engines.training_batch import weigh_rows
from covgrpo.metrics import StepTokens, histograms, most_damped, summarise
from covgrpo.verl import Choice, weigh_batch

Record = dict[str, Tensor]  # "section/case/quantity" -> values

# Hyperparameters under which a scheme acts on small batches; a scheme that is not named has its defaults alone.
PARAMETERS: dict[str, list[dict[str, Any]]] = {
    "gaussian_through": [{}, {"normaliser": "token"}, {"padded_mean": True}],
    "neutral": [{}, {"kappa": 3.0}, {"kappa": -1.0}],
    "clip_cov": [{}, {"ratio": 0.2, "low": -0.5, "high": 2.0}],
    "kl_cov": [{"ratio": 0.2, "coef": 0.7}],
}

MOST_VALUES = 50_000  # of a large tensor, every so many rows are kept


def core() -> Record:
    """Covariances, weights and penalties of every scheme in the registry, or the sentence with which it refuses."""
    found: Record = {}
    for case, batch in batches().items():
        noise = torch.rand(batch[2].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
        found[f"core/{case}/covariance"] = token_covariance(*batch)
        for name in WEIGHTINGS:
            for parameters in PARAMETERS.get(name, [{}]):
                scheme = get_weighting(name, **parameters)
                arguments = (*batch, noise) if getattr(scheme, "needs_noise", False) else batch
                label = f"core/{case}/{name} {parameters or ''}".strip()
                found[label] = _or_refusal(scheme, *arguments)
                if hasattr(scheme, "penalties"):
                    found[f"{label} penalties"] = _or_refusal(scheme.penalties, *arguments)
    return {name: _thinned(values) for name, values in found.items()}


def batches() -> dict[str, tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    """Log-probs (B, T), advantages (B,) or (B, T), mask (B, T) and group ids (B,), the same at every call."""
    found: dict[str, tuple[Tensor, Tensor, Tensor, Tensor | None]] = {}
    for dtype in (torch.float64, torch.float32):
        bits = f"float{torch.finfo(dtype).bits}"
        found[f"one group, {bits}"] = _batch(1, 8, 20, 1, dtype)
        found[f"groups out of order, {bits}"] = _batch(2, 24, 16, 6, dtype)
        found[f"heavy tails, {bits}"] = _batch(3, 24, 30, 3, dtype, tails=True)
        found[f"advantages by token, {bits}"] = _batch(4, 16, 12, 4, dtype, by_token=True)
    logps, A, mask, ids = _batch(5, 16, 10, 4, torch.float32)
    found["equal advantages"] = logps, torch.full_like(A, 0.7), mask, ids
    found["equal but for rounding"] = logps.double(), 1e-9 * A.double(), mask, ids
    found["lengths 0 and 1"] = logps, A, torch.arange(10)[None] < (torch.arange(16) % 2)[:, None], ids
    found["each row a group"] = logps.double(), A.double(), mask, torch.arange(16)
    found["nothing valid"] = logps, A, torch.zeros_like(mask), ids
    found["no group ids, NaN where masked"] = logps.masked_fill(~mask, math.nan), A, mask.long(), None
    found["bfloat16"] = logps.bfloat16(), A, mask, ids
    found["longer than a block"] = _batch(6, 640, 700, 40, torch.float32, tails=True)
    return found


def _batch(
    seed: int, rows: int, length: int, groups: int, dtype: torch.dtype, tails: bool = False, by_token: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, dtype=torch.float64, generator=generator)

    logps = uniform(rows, length).log()
    if tails:  # four tokens in five are nearly certain
        logps = logps * torch.where(uniform(rows, length) < 0.8, 0.02, 3.0)
    lengths = (uniform(rows) * (length + 1)).long()
    mask = torch.arange(length)[None] < lengths[:, None]
    advantages = torch.randn(*((rows, length) if by_token else (rows,)), dtype=torch.float64, generator=generator)
    names = torch.arange(groups) * 7 - 11
    ids = names[torch.arange(rows) % groups][torch.randperm(rows, generator=generator)]
    return logps.to(dtype), advantages.to(dtype), mask, ids


def metrics() -> Record:
    """Summaries, histograms and most damped tokens of some of the batches, weighted and not."""
    found: Record = {}
    for case, (logps, A, mask, ids) in batches().items():
        if ids is None or case.startswith(("nothing", "longer", "bfloat16")):
            continue
        row, position = mask.nonzero(as_tuple=True)
        by_token = A if A.dim() > 1 else A[:, None].expand_as(mask)
        c = token_covariance(logps.double(), A.double(), mask, ids)
        for name in ("none", "gaussian", "neutral"):
            weights = get_weighting(name)(logps.double(), A.double(), mask, ids)
            columns = {"logps": logps, "advantages": by_token, "weights": weights, "c": c, "entropies": -logps}
            tokens = StepTokens(
                row=row,
                group=ids[row],
                position=position,
                token=(7 * row + position) % 50,
                **{column: values[mask] for column, values in columns.items()},
            )
            label = f"metrics/{case}/{name}"
            for metric, value in summarise(tokens).items():
                found[f"{label}/log {metric}"] = torch.tensor(value, dtype=torch.float64)
            for what, counts in histograms(tokens).items():
                found[f"{label} histogram {what}"] = torch.tensor(counts)
            found[f"{label} most damped"] = most_damped(tokens, 10)
    return found


def engines() -> Record:
    """Weighted advantages and metrics of the rows of a driver: by themselves, as verl's batch, SkyRL's and tinker's."""
    found: Record = {}
    driver = {name: PARAMETERS.get(name, [{}])[-1] for name in WEIGHTINGS}
    for name, parameters in driver.items():
        for scope in ("group", "batch"):
            scheme = get_weighting(name, **parameters)
            _keep(found, f"rows {name} {scope}", *weigh_rows(scheme, scope, *_rows(0)))
            if not hasattr(scheme, "penalties"):
                data = _verl_batch()
                metrics = weigh_batch(data, Choice(name, scheme, scope), [f"key {i}" for i in range(12)])
                _keep(found, f"verl {name} {scope}", data.batch["advantages"], metrics)
    scheme = get_weighting("hold_entropy")
    hold = EntropyHold(scheme)
    for step in range(14):
        entropies = 0.5 + 0.1 * _rows(step)[0].sin()
        _keep(found, f"held {step}", *weigh_rows(scheme, "batch", *_rows(step), hold=hold, entropies=entropies))
    _keep(found, "skyrl", *_skyrl())
    for name in ("gaussian", "gaussian_through", "neutral"):
        _keep(found, f"tinker {name}", *_tinker(name))
    return found


def _rows(seed: int) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    logps, A, mask, ids = _batch(20 + seed, 12, 9, 3, torch.float32)
    return logps, A[:, None] * mask, mask, [f"prompt {i}" for i in ids.tolist()]


def _keep(found: Record, label: str, values: Tensor, metrics: dict[str, float]) -> None:
    found[f"engines/{label}/values"] = values.detach()
    for name, value in metrics.items():
        found[f"engines/{label}/log {name}"] = torch.tensor(value, dtype=torch.float64)


def _verl_batch() -> Any:
    logps, A, mask, uids = _rows(0)
    batch = {"old_log_probs": logps, "advantages": A, "returns": A, "response_mask": mask.long()}
    return SimpleNamespace(batch=batch, non_tensor_batch={"uid": np.array(uids, dtype=object)})


def _skyrl() -> tuple[Tensor, dict[str, float]]:
    class Engine:
        def __init__(self) -> None:
            self.all_metrics: dict[str, float] = {}

        def compute_advantages_and_returns(self, data: Any) -> Any:
            return data

    trainer = type("Trainer", (TokenWeightedAdvantages, Engine), {})()
    logps, A, mask, uids = _rows(1)
    columns = {"action_log_probs": logps, "advantages": A, "response_mask": mask.long(), "loss_mask": mask.long()}
    data = type("Batch", (dict,), {"metadata": {"uids": uids}})(columns)
    trainer.cfg = SimpleNamespace(trainer=SimpleNamespace(algorithm=SimpleNamespace(loss_reduction="token_mean")))
    return trainer.compute_advantages_and_returns(data)["advantages"], trainer.all_metrics


def _tinker(name: str) -> tuple[Tensor, dict[str, float]]:
    """The gradient of the loss by the log-probs, after the loss itself."""
    logps, A, mask, uids = _rows(2)
    leaves = [row.clone().requires_grad_() for row in logps]
    inputs = [{"advantages": a, "mask": valid.float()} for a, valid in zip(A, mask, strict=True)]
    data = [
        SimpleNamespace(loss_fn_inputs={key: SimpleNamespace(to_torch=lambda v=v: v) for key, v in datum.items()})
        for datum in inputs
    ]
    loss, metrics = WeightedPolicyGradient(uids, get_weighting(name))(data, leaves)
    loss.backward()
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    return torch.cat([loss.detach()[None], *gradients]), metrics


def _or_refusal(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """What the function returns, or the bytes of the sentence with which it refuses."""
    try:
        return function(*arguments)
    except ValueError as error:
        return torch.tensor(list(str(error).encode()), dtype=torch.uint8)


def _thinned(values: Tensor) -> Tensor:
    step = -(-values.numel() // MOST_VALUES)
    return values[::step] if step > 1 else values
