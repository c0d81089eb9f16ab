"""The tokens of one optimizer step, a column each."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from covgrpo.core import token_covariance


@dataclass(frozen=True)
class StepTokens:
    """All N valid completion tokens that an optimizer step trained on, over its micro-batches and processes.

    Args:
        row: (N,) int64; which completion of its rollout batch, in the order in which they were sampled.
        group: (N,) int64; tokens with the same number share the statistics of the covariance.
        position: (N,) int64; place in the completion.
        token: (N,) int64; token id.
        logps: (N,) float; log-prob under the policy that sampled the rollout batch, in nats.
        advantages: (N,) float; before weighting.
        weights: (N,) float; factor on the advantage; 1 where nothing is weighted.
        c: (N,) float; token covariance, nats x advantage.
        entropies: (N,) float; entropy of the policy at the token, in nats.

    """

    row: Tensor
    group: Tensor
    position: Tensor
    token: Tensor
    logps: Tensor
    advantages: Tensor
    weights: Tensor
    c: Tensor
    entropies: Tensor

    def __len__(self) -> int:
        return len(self.row)

    @classmethod
    def join(cls, parts: Sequence[dict[str, Tensor]], gather: Callable[[Tensor], Tensor]) -> "StepTokens":
        """Join the columns of micro-batches; ``gather`` adds those of the other processes.

        Where a part has no column ``c``, the covariances are taken from all tokens of the step: exact where its groups
        are whole, which they are where nothing else was known at sampling (one update a rollout batch).
        """
        names = [field.name for field in dataclasses.fields(cls)]
        has_c = all("c" in part for part in parts)
        columns: dict[str, Any] = {
            name: gather(torch.cat([part[name] for part in parts])) for name in names if has_c or name != "c"
        }
        if not has_c:
            columns["c"] = covariance_of(columns["logps"], columns["advantages"], columns["group"])
        return cls(**columns)


def covariance_of(logps: Tensor, advantages: Tensor, group: Tensor) -> Tensor:
    """Token covariance of tokens in columns (N,) -> (N,)."""
    if len(logps) == 0:
        return torch.zeros_like(logps)
    valid = torch.ones_like(logps, dtype=torch.bool)[:, None]
    return token_covariance(logps[:, None], advantages[:, None], valid, group)[:, 0]
