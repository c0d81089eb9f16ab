"""tinker: a loss for ``TrainingClient.forward_backward_custom``, which sees all that one call was given.

loss = WeightedPolicyGradient(groups)
client.forward_backward_custom(data, loss)  # the whole training batch in one call

Written for tinker 0.38 (``forward_backward_custom(data, loss_fn)``, ``loss_fn(data, logprobs) -> (loss, metrics)``).
"""

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from covgrpo.core import Weighting, fit_normaliser, get_weighting
from covgrpo.engines.training_batch import weigh_rows


class WeightedPolicyGradient:
    """-sum_{i,t} w~_{i,t} A_{i,t} pi(o_{i,t}) / pi_old(o_{i,t}) over the valid tokens (arXiv 2605.11538).

    pi_old are the server's log-probs of the first call, of the policy that sampled: make that call before the first
    update, and hand the same object to later updates on the same batch, so that weights and pi_old stay.

    Args:
        groups: (B,) the prompt of each datum, any hashable.
        weighting: the scheme; ``gaussian`` by default. One that adds a penalty is refused.
        scope: ``group`` or ``batch``.

    Raises:
        ValueError: a scheme with a penalty, or made for another normaliser; ``groups`` and data differ in length; a
            datum without ``advantages`` or ``mask``.

    """

    def __init__(self, groups: Sequence[Hashable], weighting: Weighting | None = None, scope: str = "group"):
        self.groups, self.scope = list(groups), scope
        self.weighting = fit_normaliser(weighting or get_weighting("gaussian"), "token", "a sum over tokens")
        if hasattr(self.weighting, "penalties"):
            raise ValueError(f"weighting {self.weighting}: weights cannot express its penalty in the loss.")
        if hasattr(self.weighting, "controller"):
            raise ValueError(
                f"weighting {self.weighting}: its controller runs from batch to batch, and this loss knows one; use "
                "neutral with a kappa of your own for each batch."
            )
        self._fixed: tuple[list[Tensor], list[Tensor], dict[str, float]] | None = None

    def __call__(self, data: Sequence[Any], logprobs: Sequence[Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Return the loss, a sum over tokens, and the metrics of docs/metrics.md.

        Args:
            data: B datums whose ``loss_fn_inputs`` have ``advantages`` (T_i,) and ``mask`` (T_i,), 1 at the tokens of
                the completion and 0 at the prompt's. tinker keeps both on the client.
            logprobs: B tensors (T_i,), with gradient.

        """
        if self._fixed is None:
            self._fixed = self._weigh(data, [values.detach() for values in logprobs])
        old, weighted, metrics = self._fixed
        loss = logprobs[0].new_zeros(())
        for logp, old_logp, wA in zip(logprobs, old, weighted, strict=True):
            used = wA != 0
            loss = loss - (torch.exp(logp[used] - old_logp[used]) * wA[used]).sum()
        return loss, dict(metrics)

    def _weigh(self, data: Sequence[Any], logps: list[Tensor]) -> tuple[list[Tensor], list[Tensor], dict[str, float]]:
        """Return log-probs, weighted advantages (T_i,) and metrics, which then stay."""
        if len(data) != len(self.groups):
            raise ValueError(f"groups has {len(self.groups)} entries and data {len(data)}; each datum has one group.")
        advantages = [_input(datum, "advantages", row) for row, datum in enumerate(data)]
        masks = [_input(datum, "mask", row) for row, datum in enumerate(data)]
        columns = [pad_sequence(values, batch_first=True) for values in (logps, advantages, masks)]
        rows = columns[0], columns[1], columns[2] > 0, self.groups
        weighted, metrics = weigh_rows(self.weighting, self.scope, *rows)
        return logps, [row[: len(own)].to(own.dtype) for row, own in zip(weighted, logps, strict=True)], metrics


def _input(datum: Any, name: str, row: int) -> Tensor:
    if name not in datum.loss_fn_inputs:
        raise ValueError(f"data[{row}].loss_fn_inputs has no {name!r}.")
    values: Tensor = datum.loss_fn_inputs[name].to_torch()
    return values.float()
