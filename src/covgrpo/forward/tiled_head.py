"""Log-probs and entropies through the vocabulary head, in tiles of tokens, in one pass, on any device.

The derivative of a log-prob by its logits is kept in the dtype of the products for as many tokens as a fixed budget
holds, and the incoming gradient scales rows of the small factor, so that the backward pass is matrix products alone.

Shapes: M tokens, V vocabulary, H hidden size, m tokens of a tile.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_TILE_BYTES = 64 * 2**20  # of one float32 (m, V) tensor; a few of them live at once
_KEPT_BYTES = 256 * 2**20  # of derivatives kept for the backward pass; further tiles are recomputed


@dataclass(frozen=True)
class _Logits:
    """z = s softcap(a W h + a b), s = 1 / temperature, a = logit_scale; softcap(y) = cap tanh(y / cap), if any."""

    weight: Tensor  # (V, H) in the dtype of the products
    bias: Tensor | None
    temperature: float
    softcap: float | None
    logit_scale: float

    def __call__(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return z (m, V) in float32 or wider, and tanh(y / cap) where there is a cap."""
        y = hidden @ self.weight.t()
        y = y if self.bias is None else y.add_(self.bias)
        y = y.to(torch.promote_types(y.dtype, torch.float32))
        y = y if self.logit_scale == 1 else y.mul_(self.logit_scale)
        tanh = None
        if self.softcap is not None:
            tanh = y.div_(self.softcap).tanh_()
            y = tanh * self.softcap
        return y if self.temperature == 1 else y.div_(self.temperature), tanh

    @property
    def slope(self) -> float:
        """Dz / d(W h + b), apart from the softcap's 1 - tanh^2."""
        return self.logit_scale / self.temperature


class TiledVocabularyHead(torch.autograd.Function):
    """log p(y) and entropy H of p = softmax(z) for each token, never (M, V) at once; TRL's arguments and results.

    d log p(y) / dz = onehot(y) - p            dH / dz = -p (log p + H)
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # (M, H)
        weight: Tensor,  # (V, H)
        bias: Tensor | None,  # (V,)
        targets: Tensor,  # (M,)
        temperature: float,
        _chunk_size: int,
        softcap: float | None = None,
        logit_scale: float = 1.0,
        outputs: tuple[str, ...] = ("log_probs",),
    ) -> tuple[Tensor | None, ...]:
        """Return log-probs (M,), entropies (M,) if asked for, and ``None`` for TRL's other outputs.

        Raises:
            ValueError: another output is asked for.
        """
        if set(outputs) - {"log_probs", "entropy"}:
            raise ValueError(f"the vocabulary head has log_probs and entropy, not {', '.join(outputs)}.")
        ctx.set_materialize_grads(False)
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        lowered_bias = None if bias is None else bias.detach().to(dtype)
        logits = _Logits(weight.detach().to(dtype), lowered_bias, temperature, softcap, logit_scale)
        logps, entropies, kept = [], [], []
        left = _KEPT_BYTES if hidden.requires_grad else 0
        for rows in _tiles(len(hidden), len(weight)):
            z, tanh = logits(hidden[rows].to(dtype))
            log_p = z.log_softmax(dim=1)
            p = log_p.exp()
            logps.append(log_p.gather(1, targets[rows, None])[:, 0])
            entropies.append(-torch.linalg.vecdot(p, log_p))
            left -= p.numel() * dtype.itemsize
            kept.append(_slope_of_log_prob(p, logps[-1], targets[rows], tanh, dtype) if left >= 0 else None)
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.logits, ctx.kept = logits, kept
        entropy = _joined(entropies, hidden) if "entropy" in outputs else None
        return _joined(logps, hidden), entropy, None, None, None

    @staticmethod
    def backward(ctx: Any, grad_logps: Tensor | None, grad_entropy: Tensor | None, *_: Any) -> tuple[Any, ...]:
        """Gradients of hidden, weight and bias from those of log-probs and entropies, (M,) each."""
        hidden, weight, bias, _ = ctx.saved_tensors
        logits, dtype = ctx.logits, ctx.logits.weight.dtype
        wide = torch.promote_types(dtype, torch.float32)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros(hidden.shape, dtype=wide, device=hidden.device) if needs_hidden else None
        grad_weight: Tensor | None = None
        grad_bias: Tensor | None = None
        for index, rows in enumerate(_tiles(len(hidden), len(weight))):
            tile, scale = _tile_gradient(ctx, index, rows, grad_logps, grad_entropy)
            if grad_hidden is not None:
                grad_hidden[rows] = (tile @ logits.weight) * scale
            if needs_weight:
                part = tile.t() @ (hidden[rows] * scale).to(dtype)
                grad_weight = part.to(wide) if grad_weight is None else grad_weight.add_(part)
            if needs_bias:
                part = tile.t().to(wide) @ scale[:, 0].to(wide)
                grad_bias = part if grad_bias is None else grad_bias.add_(part)
        ctx.kept = None
        gradients = (grad_hidden, grad_weight, grad_bias)
        inputs = (hidden, weight, bias)
        cast = [None if grad is None else grad.to(x.dtype) for grad, x in zip(gradients, inputs, strict=True)]
        return *cast, None, None, None, None, None, None


def _tile_gradient(
    ctx: Any, index: int, rows: slice, grad_logps: Tensor | None, grad_entropy: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return (tile, scale), (m, V) and (m, 1): the gradient of W h + b is tile * scale."""
    hidden, _, _, targets = ctx.saved_tensors
    logits, kept = ctx.logits, ctx.kept[index]
    dtype = logits.weight.dtype
    if grad_entropy is None and kept is not None and grad_logps is not None:
        return kept, grad_logps[rows, None] * logits.slope
    with torch.autocast(hidden.device.type, enabled=False):
        z, tanh = logits(hidden[rows].to(dtype))
        log_p = z.log_softmax(dim=1)
        p = log_p.exp()
    ones = log_p.new_ones(len(p), 1)
    if grad_entropy is None:
        given = ones if grad_logps is None else grad_logps[rows, None]
        logps = log_p.gather(1, targets[rows, None])[:, 0]
        return _slope_of_log_prob(p, logps, targets[rows], tanh, dtype), given * logits.slope
    entropy = -torch.linalg.vecdot(p, log_p)
    tile = (log_p + entropy[:, None]).mul_(p).mul_(-grad_entropy[rows, None])
    if grad_logps is not None:
        tile.sub_(p.mul_(grad_logps[rows, None]))
        tile.scatter_add_(1, targets[rows, None], grad_logps[rows, None].to(tile.dtype))
    return _capped(tile, tanh).to(dtype), ones * logits.slope


def _slope_of_log_prob(p: Tensor, logps: Tensor, targets: Tensor, tanh: Tensor | None, dtype: torch.dtype) -> Tensor:
    """onehot(y) - p, in place of p; at y it is 1 - p(y) = -expm1(log p(y)), exact where p(y) is almost 1."""
    slope = p.neg_().scatter_(1, targets[:, None], -torch.expm1(logps)[:, None])
    return _capped(slope, tanh).to(dtype)


def _capped(slope: Tensor, tanh: Tensor | None) -> Tensor:
    return slope if tanh is None else slope.mul_(1 - tanh.square())


def _tiles(num_tokens: int, vocabulary: int) -> Iterator[slice]:
    size = max(1, _TILE_BYTES // (4 * vocabulary))
    for start in range(0, num_tokens, size):
        yield slice(start, min(start + size, num_tokens))


def _joined(parts: list[Tensor], like: Tensor) -> Tensor:
    return torch.cat(parts) if parts else like.new_zeros(0, dtype=torch.promote_types(like.dtype, torch.float32))
