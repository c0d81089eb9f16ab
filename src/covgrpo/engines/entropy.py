"""Running the controller of a scheme that holds the entropy: what an engine that sees whole rollout batches needs."""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from covgrpo.core import Weighting
from covgrpo.core.entropy_controller import EntropyController


def weighs_by_entropies(weighting: Weighting) -> bool:
    """Whether a scheme is handed log-probs plus entropies (:func:`covgrpo.core.covariance.centred_logps`)."""
    return hasattr(weighting, "controller") or getattr(weighting, "needs_entropies", False)


def measure_entropy(entropies: Tensor, mask: Tensor, group: Tensor) -> tuple[float, float]:
    """Mean entropy of a batch's tokens and the squared standard error of that mean.

    Tokens of one prompt are alike, so the error is taken over the K groups as clusters:

    H = 1/N sum_t h_t,    variance = K / (K - 1) sum_k (sum_{t in k} (h_t - H))^2 / N^2

    Args:
        entropies: (B, T) nats; ignored where masked.
        mask: (B, T) bool or 0/1.
        group: (B,) int; with one group alone the completions are the clusters.

    Returns:
        nats, and nats squared; both 0 where no token is valid.

    """
    # On the CPU: not every device has float64.
    entropies, valid, group = entropies.detach().cpu(), mask.detach().cpu().bool(), group.cpu()
    h = torch.where(valid, entropies.double(), 0.0)
    N = int(valid.sum())
    if N == 0:
        return 0.0, 0.0
    H = h.sum() / N
    by_row = (h.sum(dim=1) - H * valid.sum(dim=1))[valid.any(dim=1)]
    _, cluster = torch.unique(group[valid.any(dim=1)], return_inverse=True)
    if cluster.max() == 0:
        cluster = torch.arange(len(by_row), device=by_row.device)
    K = int(cluster.max()) + 1
    sums = torch.zeros(K, dtype=h.dtype, device=h.device).index_add_(0, cluster, by_row)
    return H.item(), (K / max(K - 1, 1) * sums.square().sum() / N**2).item()


class EntropyHold:
    """Keeps kappa for a scheme with a method ``controller``: one rollout batch, one kappa.

    For each rollout batch: :meth:`observe` it, weigh it with ``weighting``, and say what that reached, :meth:`weighed`.

    Args:
        scheme: a frozen dataclass with a field ``kappa``.

    """

    def __init__(self, scheme: Any):
        self.scheme = scheme
        self.controller: EntropyController = scheme.controller()
        self._reached: list[tuple[float, float]] = []  # mean(w c) and tokens of the rollout batch's parts

    @property
    def weighting(self) -> Weighting:
        """The scheme with the kappa of the latest rollout batch."""
        weighting: Weighting = dataclasses.replace(self.scheme, kappa=self.controller.kappa)
        return weighting

    def observe(self, entropy: float, variance: float, mean_c: float, reached: float = math.nan) -> None:
        """Take in a rollout batch, after what the updates since the one before were weighted to.

        Args:
            entropy: mean over its valid tokens, nats.
            variance: squared standard error of that mean.
            mean_c: mean token covariance, nats x advantage.
            reached: :attr:`reached`, where processes must agree on it; default: as noted here.

        """
        reached = self.reached if math.isnan(reached) else reached
        if not math.isnan(reached):
            self.controller.advance(reached)
        self._reached = []
        self.controller.observe(entropy, variance, mean_c)

    def weighed(self, c: Tensor, weights: Tensor, mask: Tensor) -> None:
        """Note what the ``weights`` (B, T) of a part of the rollout batch reach, given its covariances ``c`` (B, T)."""
        tokens = float(mask.sum())
        if tokens:
            self._reached.append(((c.cpu().double() * weights.detach().cpu().double()).sum().item() / tokens, tokens))

    @property
    def reached(self) -> float:
        """mean(w c) over the tokens weighed since the last observation; NaN before any."""
        tokens = sum(count for _, count in self._reached)
        return sum(mean * count for mean, count in self._reached) / tokens if tokens else math.nan

    def metrics(self) -> dict[str, float]:
        """``hold/*`` of docs/metrics.md."""
        controller = self.controller
        found = {"hold/kappa": controller.kappa, "hold/entropy": controller.entropy}
        if controller.target is not None:
            found["hold/target"] = controller.target
        if not math.isnan(self.reached):
            found["hold/reached"] = self.reached
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return JSON's types; includes what the next observation needs of this batch."""
        return {"controller": self.controller.state_dict(), "reached": self._reached}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state, with the target and the bound that the scheme asks for now.

        Raises:
            ValueError: it is another version's.

        """
        asked: EntropyController = self.scheme.controller()
        self.controller = EntropyController.from_state(state["controller"])
        self.controller.ask(asked.target, asked.fraction, asked.bound, asked.floor)
        self._reached = [(mean, tokens) for mean, tokens in state["reached"]]
