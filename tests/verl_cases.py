"""What verl's driver holds where the advantages are computed, without verl."""

from types import SimpleNamespace

import numpy as np
import torch

from covgrpo.core import gaussian_weights, get_weighting
from covgrpo.verl import Choice, weigh_batch

LENGTHS = (5, 3, 6, 1, 4, 6, 2, 5, 3, 4)
UIDS = ("p", "p", "p", "p", "q", "q", "q", "r", "r", "r")


def make(name="gaussian", scope="group", **parameters) -> Choice:
    return Choice(name, get_weighting(name, **parameters), scope)


def make_data(seed=0, uids=UIDS, lengths=LENGTHS):
    """A padded DataProto as `compute_advantage` leaves it: advantages and returns are one tensor."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(uids), max(lengths))
    mask = (torch.arange(shape[1])[None] < torch.tensor(lengths)[:, None]).long()
    logps = -3 * torch.rand(shape, generator=generator)
    advantages = torch.randn(shape[0], 1, generator=generator) * mask
    batch = {"old_log_probs": logps, "advantages": advantages, "returns": advantages, "response_mask": mask}
    return SimpleNamespace(batch=batch, non_tensor_batch={"uid": np.array(uids, dtype=object)})


def entropies_of(data):
    """Entropies (B, T) of the rows, as unlike the log-probs as they can be; NaN where masked."""
    logps, mask = data.batch["old_log_probs"], data.batch["response_mask"]
    return (0.2 + 0.5 * (7 * logps).sin() ** 2).masked_fill(mask == 0, torch.nan)


def rows_of(data, order):
    batch = {name: value[order] for name, value in data.batch.items()}
    return SimpleNamespace(batch=batch, non_tensor_batch={"uid": data.non_tensor_batch["uid"][order]})


def keys_of(data):
    return [f"{uid}_{i}_0" for i, uid in enumerate(data.non_tensor_batch["uid"])]


def weigh(data, choice=None, keys=None):
    metrics = weigh_batch(data, choice or make(), keys)
    return data.batch["advantages"], metrics


def by_group(data):
    """Core weights of each prompt's rows by themselves, times the advantages."""
    expected = torch.zeros_like(data.batch["advantages"])
    for uid in set(data.non_tensor_batch["uid"]):
        rows = torch.from_numpy(data.non_tensor_batch["uid"] == uid)
        logps, A, mask = (data.batch[name][rows] for name in ("old_log_probs", "advantages", "response_mask"))
        expected[rows] = gaussian_weights(logps, A, mask) * A
    return expected


def config(covgrpo=None, **algorithm):
    section = {} if covgrpo is None else {"covgrpo": covgrpo}
    loss = {"policy_loss": {"loss_mode": algorithm.pop("loss_mode", "vanilla")}}
    loss["loss_agg_mode"] = algorithm.pop("loss_agg_mode", "token-mean")
    return {"algorithm": {**section, **algorithm}, "actor_rollout_ref": {"actor": loss}}
