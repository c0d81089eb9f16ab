"""The rows of a whole training batch, as a driver holds them: advantages (B, T) times token weights.

B rows (trajectories) in any order, T response tokens, padded. Rows without a valid token are in no statistic.
"""

import hashlib
from collections.abc import Hashable, Iterable, Sequence

import torch
from torch import Tensor

from covgrpo.core import Weighting, check_weights, token_covariance
from covgrpo.core.covariance import centred_logps
from covgrpo.core.noise import token_noise
from covgrpo.engines.entropy import EntropyHold, measure_entropy, weighs_by_entropies
from covgrpo.metrics import summarise_weighting

SCOPES = ("group", "batch")


def weigh_rows(
    weighting: Weighting,
    scope: str,
    logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    uids: Sequence[Hashable],
    names: Sequence[str] | None = None,
    hold: EntropyHold | None = None,
    entropies: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Multiply advantages by the token weights.

    Args:
        weighting: the scheme.
        scope: ``group``, rows of equal uid share statistics; ``batch``, all rows do.
        logps: (B, T) float; log-probs of the policy that sampled, in the trainer's numerics.
        advantages: (B, T) float, before any factor of the loss.
        mask: (B, T) bool; what is stored at masked positions is ignored.
        uids: (B,) names of the prompts.
        names: (B,) names of the rows; they decide the draws of a scheme that draws. ``None``: the uid and the row's
            place among its prompt's rows.
        hold: of a ``weighting`` that holds the entropy; takes this batch in.
        entropies: (B, T) float, nats; of the distributions that the tokens were drawn from. Schemes that say
            ``needs_entropies`` weigh by log-probs plus entropies where these are given; ``hold`` needs them.

    Returns:
        Weighted advantages (B, T), 0 where masked; and ``cov/*``, ``weight/*``, ``update/*`` of docs/metrics.md over
        all valid tokens, with ``hold/*``; empty where there is none.

    Raises:
        ValueError: a wrong shape or dtype, or no entropies with ``hold``; names the argument.

    """
    if entropies is not None and entropies.shape != logps.shape:
        raise ValueError(f"entropies have the shape {tuple(entropies.shape)} and logps {tuple(logps.shape)}.")
    group = number(uids)
    shared = group if scope == "group" else torch.zeros_like(group)
    arguments = logps, advantages, mask, shared
    c = token_covariance(*arguments)
    if not mask.any():
        return torch.zeros_like(advantages), {}
    if entropies is not None and weighs_by_entropies(weighting):
        arguments = centred_logps(logps, entropies), *arguments[1:]
    if hold is not None:
        weighting = _steered(hold, arguments, group, entropies)
    weights = _weights(weighting, arguments, names or row_names(uids))
    weighted = torch.where(mask, advantages * weights, 0)
    if hold is not None:
        hold.weighed(token_covariance(*arguments), weights, mask)
    weighted_c = token_covariance(logps, weighted, mask, group)
    columns = (values[mask] for values in (logps, advantages, weights, c, weighted_c))
    return weighted, {**summarise_weighting(*columns), **(hold.metrics() if hold is not None else {})}


def number(names: Iterable[Hashable]) -> Tensor:
    """Number equal names alike: (B,) int64, in the order of their first appearance."""
    names = list(names)
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([numbers[name] for name in names], dtype=torch.long)


def row_names(uids: Sequence[Hashable]) -> list[str]:
    """Name the rows by their prompt and their place among its rows."""
    seen: dict[Hashable, int] = {}
    names = []
    for uid in uids:
        seen[uid] = seen.get(uid, -1) + 1
        names.append(f"{uid}_{seen[uid]}")
    return names


def _steered(hold: EntropyHold, arguments: tuple[Tensor, ...], group: Tensor, entropies: Tensor | None) -> Weighting:
    """Let ``hold`` take in the batch: the scheme with the kappa for it."""
    if entropies is None:
        raise ValueError("entropies are needed by a weighting that holds the entropy.")
    mask = arguments[2]
    mean_c = token_covariance(*arguments).double().sum().item() / int(mask.sum())
    hold.observe(*measure_entropy(entropies, mask, group), mean_c)
    return hold.weighting


def _weights(weighting: Weighting, arguments: tuple[Tensor, ...], names: Sequence[str]) -> Tensor:
    """Token weights (B, T); a scheme that draws gets numbers that belong to the rows' names, not to their places."""
    mask = arguments[2]
    if not getattr(weighting, "needs_noise", False):
        return check_weights(weighting, weighting(*arguments), mask)
    digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names]
    rows = torch.tensor([int.from_bytes(digest, "big", signed=True) for digest in digests])
    noise = token_noise(0, rows, arguments[0].shape[1])
    return check_weights(weighting, weighting(*arguments, noise), mask)  # type: ignore[call-arg]  # (needs_noise: a fifth)
