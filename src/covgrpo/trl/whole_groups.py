"""Micro-batches of whole groups: TRL deals the rows of a rollout batch at random, so that each has many prompts.

A micro-batch forwards each of its prompts once. With 4 prompts of 12 completions in micro-batches of 12 rows that is 4
prompts a step where groups stay together, and about 15 where they do not; and a group without advantage is left out
whole.
"""

from typing import Any

import torch
from torch import Tensor

from covgrpo.trl.rollout import Rollout


def may_keep_groups(args: Any, router_loss: bool) -> bool:
    """Whether an update does not depend on which micro-batch a row is in.

    It does where an optimizer step takes a part of a rollout batch, and where the loss has a term of the micro-batch as
    a whole: tokens to divide by (``bnpo``), a mean entropy or a quantile of it, the balance of a router.

    Args:
        args: a ``CovGRPOConfig``.
        router_loss: whether the loss has a mixture of experts' own term.

    """
    whole = args.gradient_accumulation_steps % args.steps_per_generation == 0
    entropy_term = args.entropy_coef or args.use_adaptive_entropy or args.top_entropy_quantile < 1
    if args.loss_type == "bnpo" or entropy_term or router_loss:
        return False
    return bool(args.fast_path and whole and args.steps_per_generation > 1)


def keep_groups(micro_batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Deal the rows of TRL's micro-batches anew, in the order in which they were sampled.

    Micro-batches with more than tensors of one size (images) come back as they are.
    """
    if not all(_is_text(micro) for micro in micro_batches):
        return micro_batches
    order = torch.cat([micro[Rollout.key("row_B")] for micro in micro_batches]).argsort()
    sizes = [len(micro["advantages"]) for micro in micro_batches]
    dealt: list[dict[str, Any]] = [dict(micro) for micro in micro_batches]
    for name, value in micro_batches[0].items():
        if isinstance(value, Tensor) and value.dim():
            rows = torch.cat([micro[name] for micro in micro_batches])[order]
            for micro, part in zip(dealt, rows.split(sizes), strict=True):
                micro[name] = part
    return dealt


def _is_text(micro: dict[str, Any]) -> bool:
    num_rows = len(micro["advantages"])
    return all(
        value is None or (isinstance(value, Tensor) and (value.dim() == 0 or len(value) == num_rows))
        for value in micro.values()
    )
