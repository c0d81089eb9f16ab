"""``Rollout``: what the method knows of the rows of a batch, and the one place that reads and writes it in TRL's dict.

TRL hands a batch from method to method as a dict of tensors, which it shuffles, splits into micro-batches and keeps for
later updates, row by row. What belongs to the rows has to travel in it.
"""

import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from covgrpo.core.covariance import centred_logps

_PREFIX = "covgrpo/"
# What TRL's scoring takes of a batch under its own name: what a model is handed that sees more than text.
MULTIMODAL = frozenset(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)


@dataclass
class Rollout:
    """Rows of a rollout batch: all that this process sampled, a micro-batch of it, or those of an optimizer step.

    Args:
        mask_BT: (B, T) valid completion tokens: no padding, no tool output.
        step: 0-dim int; optimizer steps that were done when the rows were sampled.
        row_B: (B,) place among all rollouts of the run, over all processes.
        group_B: (B,) which prompt of the run; its completions share a number.
        advantages_B: (B,) before weighting. (B, T) where a stock trainer of the user's own makes them so.
        logps_BT: (B, T) under the policy that sampled, in the trainer's numerics; ``None`` where nobody has taken them.
        entropies_BT: (B, T) likewise, nats; from our sampler, or taken for a scheme that needs them.
        c_BT: (B, T) token covariance.
        weights_BT: (B, T) factor on the advantages; ``None``: 1.
        penalties_BT: (B, T) coefficient of |log pi - log pi_old|, of a scheme that has it.

    """

    mask_BT: Tensor
    step: Tensor
    row_B: Tensor
    group_B: Tensor
    advantages_B: Tensor
    logps_BT: Tensor | None = None
    entropies_BT: Tensor | None = None
    c_BT: Tensor | None = None
    weights_BT: Tensor | None = None
    penalties_BT: Tensor | None = None

    @classmethod
    def sampled(cls, inputs: dict[str, Any], row_B: Tensor, num_generations: int, step: int) -> "Rollout":
        """Begin with a batch as TRL has sampled and rewarded it; a group's completions are neighbours in ``row_B``."""
        return cls(
            mask_BT=valid_tokens(inputs),
            step=torch.tensor(step),
            row_B=row_B,
            group_B=row_B // num_generations,
            advantages_B=inputs["advantages"],
            logps_BT=inputs.get("old_per_token_logps"),
        )

    def complete(self, logps_BT: Tensor, entropies_BT: Tensor | None) -> None:
        """Fill in what nobody has taken yet."""
        self.logps_BT = logps_BT if self.logps_BT is None else self.logps_BT
        self.entropies_BT = entropies_BT if self.entropies_BT is None else self.entropies_BT

    @property
    def known_logps_BT(self) -> Tensor:
        """``logps_BT`` of a rollout that has them.

        Raises:
            ValueError: nobody has taken them.

        """
        return _taken(self.logps_BT, "log-probs")

    @property
    def known_entropies_BT(self) -> Tensor:
        """``entropies_BT``, likewise."""
        return _taken(self.entropies_BT, "entropies")

    @property
    def centred_logps_BT(self) -> Tensor:
        """``logps_BT`` less their mean at each token, likewise."""
        return centred_logps(self.known_logps_BT, self.known_entropies_BT)

    @staticmethod
    def key(name: str) -> str:
        """Where TRL's dict holds a field."""
        return _PREFIX + name

    @classmethod
    def read(cls, inputs: dict[str, Any]) -> "Rollout | None":
        """Take the rows' part out of TRL's dict; ``None`` where there is none, as in evaluation."""
        if _PREFIX + "row_B" not in inputs:
            return None
        stored = {name: inputs[_PREFIX + name] for name in _STORED if _PREFIX + name in inputs}
        return cls(mask_BT=valid_tokens(inputs), **stored)

    def write(self, inputs: dict[str, Any]) -> None:
        """Put it into TRL's dict. TRL's losses take advantages (B, T) as they are: weighted ones enter here alone."""
        for name in _STORED:
            value = getattr(self, name)
            if value is not None:
                inputs[_PREFIX + name] = value
        if self.weights_BT is not None:
            inputs["advantages"] = self.advantages_B[:, None] * self.weights_BT

    @classmethod
    def join(cls, parts: Sequence["Rollout"]) -> "Rollout":
        """Put the rows of several batches under each other, padded on the right to one length."""
        length = max(part.mask_BT.shape[1] for part in parts)
        names = [name for name in _OF_ROWS if all(getattr(part, name) is not None for part in parts)]
        columns = {name: torch.cat([_padded(getattr(part, name), length) for part in parts]) for name in names}
        return cls(step=parts[0].step, **columns)

    def take(self, rows: slice, length: int) -> dict[str, Tensor]:
        """What weighing has left of these rows, of width ``length``, by name."""
        values = {name: getattr(self, name) for name in ("c_BT", "weights_BT", "penalties_BT")}
        return {name: value[rows, :length] for name, value in values.items() if value is not None}


_STORED = tuple(field.name for field in dataclasses.fields(Rollout) if field.name != "mask_BT")
_OF_ROWS = ("mask_BT", *(name for name in _STORED if name != "step"))


def _taken(values: Tensor | None, what: str) -> Tensor:
    if values is None:
        raise ValueError(f"the rollout has no {what} yet: score it first.")
    return values


def valid_tokens(inputs: dict[str, Any]) -> Tensor:
    """Mask (B, T) of the completion tokens that the loss counts: no padding, no tool output."""
    mask: Tensor = inputs["completion_mask"]
    return mask * inputs["tool_mask"] if "tool_mask" in inputs else mask


def scoring_inputs(inputs: dict[str, Any]) -> tuple[tuple[Tensor, Tensor, int], dict[str, Any]]:
    """What TRL's scoring takes of a batch beside the model: ids (B, L+T), mask, T; and images, where it has any."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    multimodal = {name: inputs[name] for name in MULTIMODAL if name in inputs}
    return (ids, mask, inputs["completion_ids"].size(1)), multimodal


def _padded(values: Tensor, length: int) -> Tensor:
    """Pad (B, T) on the right to ``length``; (B,) stays."""
    return values if values.dim() == 1 else torch.nn.functional.pad(values, (0, length - values.shape[1]))
