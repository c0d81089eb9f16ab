"""What an update did to the entropy of the tokens that it trained on, beside what the covariance predicts."""

from typing import Any

import torch
from torch import Tensor

from covgrpo.trl.gathering import gather_column, multimodal_inputs, valid_tokens


class EntropyProbe:
    """Scores a step's tokens before and after the optimizer's step.

    dH ~ -eta Cov(log pi, w A) holds for a step of gradient descent with rate eta (arXiv 2505.22617). Adam's step d is
    another; eta is taken as the length of its part along the gradient g, as a multiple of g:  eta = -<d, g> / <g, g>.
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self._inputs: list[dict[str, Any]] = []
        self._before: Tensor | None = None
        self._weights: list[tuple[Tensor, Tensor]] = []
        self._eta = 0.0

    def keep(self, inputs: dict[str, Any]) -> None:
        """Remember a micro-batch of the step."""
        if self.trainer.entropy_probe_steps:
            self._inputs.append(inputs)

    @torch.no_grad()
    def before(self) -> None:
        """Score, and copy the weights: between the backward pass and the optimizer's step."""
        self._before = self._entropies()
        parameters = (p for p in self.trainer.model.parameters() if p.grad is not None)
        self._weights = [(p, p.detach().clone()) for p in parameters]

    @torch.no_grad()
    def stepped(self) -> None:
        """Compare the weights with the copies, while the gradients are still there."""
        if self._before is None:
            return
        along, square = 0.0, 0.0
        for parameter, old in self._weights:
            if parameter.grad is not None:
                along += ((parameter - old) * parameter.grad).sum(dtype=torch.float64).item()
                square += parameter.grad.square().sum(dtype=torch.float64).item()
        self._eta = -along / square if square else 0.0
        self._weights = []

    @torch.no_grad()
    def after(self) -> dict[str, float]:
        """Return ``entropy/change`` and ``entropy/predicted_step`` (nats a token); empty if this step is not probed."""
        before, self._before = self._before, None
        tokens, inputs = self.trainer.step_tokens, self._inputs
        result = {}
        if before is not None and tokens is not None and len(before):
            covariance = self.trainer._metrics["train"]["cov/weighted"][-1]
            change = (self._entropies() - before).mean().item()
            result = {"entropy/change": change, "entropy/predicted_step": -self._eta * covariance}
        if inputs:
            self._inputs = []
        return result

    def _entropies(self) -> Tensor:
        """Entropies (N,) of the step's valid tokens, over all processes, under the policy as it is now."""
        trainer = self.trainer
        # Outside the DDP wrapper: no gradient is wanted. The same rows, split as in the update.
        model = trainer.accelerator.unwrap_model(trainer.model)
        parts = []
        for inputs in self._inputs:
            _, entropies, _ = trainer._get_per_token_logps_and_entropies(
                model,
                torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
                torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
                inputs["completion_ids"].size(1),
                compute_entropy=True,
                **multimodal_inputs(inputs),
            )
            parts.append(entropies[valid_tokens(inputs).bool()].double())
        return gather_column(trainer.accelerator, torch.cat(parts))
