"""Sampling that prefills each prompt once per group, drops finished rows, and returns log-probs and entropies."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from covgrpo.errors import UserError
from covgrpo.rollouts.decoding import prefill
from covgrpo.rollouts.drawing import Drawing
from covgrpo.rollouts.gate import causal_lm, why_not_sampled
from covgrpo.rollouts.settings import SamplingSettings

# Finished rows are dropped when they are this fraction of the batch away from it: dropping copies the others' caches.
_KEPT_UNTIL = 7 / 8


@dataclass
class Samples:
    """One list per row. ``logps`` and ``entropies`` are those of softmax(logits / temperature), in nats, before top-k,
    top-p, min-p and the repetition penalty: the distribution that the loss scores.
    """

    token_ids: list[list[int]]
    logps: list[list[float]]
    entropies: list[list[float]]


@torch.no_grad()
def sample(
    model: nn.Module,
    prompts: list[list[int]],
    settings: SamplingSettings,
    generator: torch.Generator | None = None,
    noise_BT: Tensor | None = None,
) -> Samples:
    """Sample one completion for every row of ``prompts`` (equal prompts are prefilled once).

    Args:
        model: a causal language model whose forward takes a cache and ``logits_to_keep``.
        prompts: N lists of token ids.
        settings: see :class:`SamplingSettings`.
        generator: random state; ``None`` is torch's global one. Which of its numbers a row gets depends on the others.
        noise_BT: (N, max_new_tokens) numbers in [0, 1) to draw by instead, each row's own.

    Raises:
        UserError: a model that the sampler does not serve (:func:`covgrpo.rollouts.why_not_sampled`).
        ValueError: an empty prompt.

    """
    reason = why_not_sampled(model)
    if reason is not None:
        raise UserError(f"{type(causal_lm(model)).__name__} cannot be sampled from here: {reason}.")
    if any(not prompt for prompt in prompts):
        raise ValueError("prompts must not be empty: a completion needs at least one token before it.")
    device = next(model.parameters()).device
    decoding = prefill(model, prompts, settings.pad_token_id, device)
    draw = Drawing(settings)
    eos = torch.tensor(settings.eos_token_ids, device=device)
    running = torch.ones(len(prompts), dtype=torch.bool, device=device)
    steps = []
    for position in range(settings.max_new_tokens):
        u = None if noise_BT is None else noise_BT[decoding.rows, position, None]
        drawn = draw(decoding.logits, decoding.ids, generator, u)
        steps.append([values[running] for values in (decoding.rows, *drawn)])
        tokens = drawn[0]
        running = running & ~torch.isin(tokens, eos)
        if position + 1 == settings.max_new_tokens or not running.any():
            break
        if running.sum() <= _KEPT_UNTIL * len(running):
            decoding.keep(running)
            tokens, running = tokens[running], running[running]
        decoding.advance(model, tokens)
    return _by_row(steps, len(prompts))


def _by_row(steps: list[list[Tensor]], num_rows: int) -> Samples:
    """Hand out the rows, tokens, log-probs and entropies of each step, (n,) each, by row."""
    token_ids: list[list[int]] = [[] for _ in range(num_rows)]
    logps: list[list[float]] = [[] for _ in range(num_rows)]
    entropies: list[list[float]] = [[] for _ in range(num_rows)]
    for step in steps:
        for row, token, logp, entropy in zip(*(values.tolist() for values in step), strict=True):
            token_ids[row].append(token)
            logps[row].append(logp)
            entropies[row].append(entropy)
    return Samples(token_ids, logps, entropies)
