"""The driver's batch: advantages (B, T) times token weights, whatever verl later does with the rows.

B rows (trajectories), T response tokens, right-padded, as in a padded ``verl.DataProto``. Rows may stand in any order:
verl has balanced them by length before. A row of padding has no valid token, so it is in no statistic.
"""

import hashlib
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from covgrpo.core import token_covariance
from covgrpo.core.noise import token_noise
from covgrpo.errors import UserError
from covgrpo.metrics import summarise_weighting
from covgrpo.verl.choice import Choice


def weigh_batch(data: Any, choice: Choice, keys: Sequence[str] | None = None) -> dict[str, float]:
    """Multiply ``data.batch["advantages"]`` by the token weights.

    Args:
        data: a ``verl.DataProto``, or what has its ``batch`` (mapping of tensors) and ``non_tensor_batch``. Read are
            ``old_log_probs``, ``advantages`` (B, T) float, ``response_mask`` (B, T) 0/1 and the row's prompt ``uid``
            (B,). Only ``advantages`` is replaced, by a new tensor (``returns`` may be the same one), 0 where masked.
        choice: scheme and scope. ``none`` leaves the advantages as they are.
        keys: (B,) names of the rows; they decide the draws of a scheme that draws. ``None``: the uid and the row's
            place among its prompt's rows.

    Returns:
        ``cov/*``, ``weight/*`` and ``update/*`` of docs/metrics.md over all valid tokens; empty where there is none.

    Raises:
        UserError: a column is missing; names it.

    """
    logps, advantages, mask = (_column(data, name) for name in ("old_log_probs", "advantages", "response_mask"))
    mask = mask.bool()
    uids = _uids(data)
    group = number(uids)
    scope = group if choice.scope == "group" else torch.zeros_like(group)
    c = token_covariance(logps, advantages, mask, scope)
    weights = _weights(choice, (logps, advantages, mask, scope), keys or row_names(uids))
    weighted = torch.where(mask, advantages * weights, 0)
    if choice.weighs:
        data.batch["advantages"] = weighted
    if not mask.any():
        return {}
    weighted_c = token_covariance(logps, weighted, mask, group)
    return summarise_weighting(*(values[mask] for values in (logps, advantages, weights, c, weighted_c)))


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


def _weights(choice: Choice, arguments: tuple[Tensor, ...], names: Sequence[str]) -> Tensor:
    """Token weights (B, T); a scheme that draws gets numbers that belong to the rows' names, not to their places."""
    if not getattr(choice.weighting, "needs_noise", False):
        return choice.weighting(*arguments)
    digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names]
    rows = torch.tensor([int.from_bytes(digest, "big", signed=True) for digest in digests])
    noise = token_noise(0, rows, arguments[0].shape[1])
    return choice.weighting(*arguments, noise)  # type: ignore[call-arg]


def _column(data: Any, name: str) -> Tensor:
    value = data.batch.get(name, None)
    if not isinstance(value, Tensor):
        raise UserError(f"verl's batch has no {name!r} where the advantages are computed; the token weights need it.")
    return value


def _uids(data: Any) -> list[Hashable]:
    uids = data.non_tensor_batch.get("uid", None)
    if uids is None:
        raise UserError("verl's batch has no 'uid' where the advantages are computed; it tells which rows are a group.")
    return list(uids)
