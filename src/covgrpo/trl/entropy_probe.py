"""What an update did to the entropy of the tokens that it trained on, beside what the covariance predicts."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from covgrpo.hardware import widest_float
from covgrpo.trl.gathering import gather_column
from covgrpo.trl.rollout import scoring_inputs, valid_tokens


class EntropyProbe:
    """Scores a step's tokens before and after the optimizer's step.

    dH ~ -eta Cov(log pi, w A) holds for a step of gradient descent with rate eta (arXiv 2505.22617). Adam's step d is
    another; eta is taken as the length of its part along the gradient g, as a multiple of g:  eta = -<d, g> / <g, g>.

    Args:
        accelerator: of the trainer.
        model: the policy, perhaps wrapped.
        score: TRL's scoring, ``_get_per_token_logps_and_entropies``.
        every: returns the steps between measurements; 0: none.

    """

    def __init__(
        self, accelerator: Accelerator, model: Any, score: Callable[..., Any], every: Callable[[], int] = lambda: 1
    ):
        self.accelerator, self.model, self.score, self.every = accelerator, model, score, every
        self._inputs: list[dict[str, Any]] = []
        self._before: Tensor | None = None
        self._weights: list[tuple[nn.Parameter, Tensor]] = []
        self._eta = 0.0

    def keep(self, inputs: dict[str, Any]) -> None:
        """Remember a micro-batch of the step."""
        if self.every():
            self._inputs.append(inputs)

    def is_due(self, step: int) -> bool:
        """Whether this optimizer step, counted from 1, is measured."""
        return bool(self.every()) and step % self.every() == 0

    @torch.no_grad()
    def before(self) -> None:
        """Score, and copy the weights: between the backward pass and the optimizer's step."""
        self._before = self._entropies()
        parameters = (p for p in self.model.parameters() if p.grad is not None)
        self._weights = [(p, p.detach().clone()) for p in parameters]

    @torch.no_grad()
    def stepped(self) -> None:
        """Compare the weights with the copies, while the gradients are still there."""
        if self._before is None:
            return
        along, square = 0.0, 0.0
        for parameter, old in self._weights:
            if parameter.grad is not None:
                wide = widest_float(parameter.device)
                along += ((parameter - old) * parameter.grad).sum(dtype=wide).item()
                square += parameter.grad.square().sum(dtype=wide).item()
        self._eta = -along / square if square else 0.0
        self._weights = []

    @torch.no_grad()
    def after(self, covariance: float) -> dict[str, float]:
        """Return ``entropy/change`` and ``entropy/predicted_step`` (nats a token); empty if this step is not probed.

        Args:
            covariance: mean of w c over the step's tokens, nats x advantage.

        """
        before, self._before = self._before, None
        result = {}
        if before is not None and len(before):
            change = (self._entropies() - before).mean().item()
            result = {"entropy/change": change, "entropy/predicted_step": -self._eta * covariance}
        self._inputs = []
        return result

    def _entropies(self) -> Tensor:
        """Entropies (N,) of the step's valid tokens, over all processes, under the policy as it is now."""
        # Outside the DDP wrapper: no gradient is wanted. The same rows, split as in the update.
        model = self.accelerator.unwrap_model(self.model)
        parts = []
        for inputs in self._inputs:
            text, multimodal = scoring_inputs(inputs)
            _, entropies, _ = self.score(model, *text, compute_entropy=True, **multimodal)
            parts.append(entropies[valid_tokens(inputs).bool()].to(widest_float(entropies.device)))
        return gather_column(self.accelerator, torch.cat(parts))
