"""Token covariance, the quantity that drives the policy's entropy.

To first order a step of natural policy gradient changes the entropy by dH ~ -eta * Cov(log pi, A) (arXiv 2505.22617),
so the tokens with an extreme contribution to that covariance drive entropy collapse (c > 0) or explosion (c < 0).

In columns of the N valid tokens (:class:`covgrpo.core.tokens.Tokens`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from covgrpo.core.tokens import Tokens, evaluate

# Advantages of one group that differ by no more than this are one advantage: rewards that are all equal give A = 0, but
# in float32 often +-1e-9. Normalised advantages are of order one.
ADVANTAGE_NOISE = 1e-7


@dataclass(frozen=True)
class Covariance:
    """c = (l - mean(l)) * a and what it is made of, in columns."""

    tokens: Tokens
    c: Tensor  # (N,)
    a: Tensor  # (N,) A - mean(A)
    mean_A_K: Tensor  # (K,) the mean in it
    flat_K: Tensor  # (K,) bool; all advantages are one, and c is 0
    by_completion: bool  # mean(l) runs over the completion's tokens, else over the group's

    @classmethod
    def _of(cls, tokens: Tokens, centred_l: Tensor, mean_A_K: Tensor, by_completion: bool) -> "Covariance":
        a = tokens.A.sub_(tokens.each(mean_A_K))
        flat_K = tokens.max_K(a.abs()) <= ADVANTAGE_NOISE
        c = centred_l.mul_(a).masked_fill_(tokens.each(flat_K), 0)
        return cls(tokens, c, a, mean_A_K, flat_K, by_completion)

    @classmethod
    def over_group(cls, tokens: Tokens) -> "Covariance":
        """c_{i,t} = (l_{i,t} - mean(l)) * (A_{i,t} - mean(A))        arXiv 2605.11538, section 3.

        Both means run over the valid tokens of the token's group, so mean(A) is token-weighted and not 0 where the
        lengths of the completions differ.
        """
        l = tokens.l  # noqa: E741 (as in the formula)
        return cls._of(tokens, l.sub_(tokens.mean(l)), tokens.mean_K(tokens.A), by_completion=False)

    @classmethod
    def over_completion(cls, tokens: Tokens) -> "Covariance":
        """c_{i,t} = (l_{i,t} - mean_t(l_i)) * (A_i - mean_j(A_j)): as in the code of the paper's first author.

        The mean of l runs over the completion's own tokens, the mean of A over the group's completions (each counts
        once, by the mean over its tokens where A differs between them; one without valid tokens does not count).
        """
        l = tokens.l  # noqa: E741 (as in the formula)
        any_B = (tokens.num_tokens_B > 0).to(tokens.dtype)
        mean_A_K = tokens.sum_rows(tokens.row_mean(tokens.A) * any_B) / tokens.sum_rows(any_B).clamp(min=1)
        return cls._of(tokens, l.sub_(tokens.each_row(tokens.row_mean(l))), mean_A_K, by_completion=True)

    def gradient(self, dL_dc: Tensor) -> Tensor:
        """dL/dl from dL/dc, (N,): a dL/dc, less its mean over the tokens that share the mean of l."""
        x = self.a * dL_dc
        return x - (self.tokens.each_row(self.tokens.row_mean(x)) if self.by_completion else self.tokens.mean(x))


def covariance(tokens: Tokens) -> Tensor:
    """Return c of the paper, (N,): see :meth:`Covariance.over_group`."""
    return Covariance.over_group(tokens).c


def centred_logps(logps: Tensor, entropies: Tensor) -> Tensor:
    """Log-probs less what they are on average at their token: l + h, whose mean is 0 wherever a token was drawn.

    E[log pi(a)] over a ~ pi is -h. So with l + h in place of l, mean(c) has only what the entropy is driven by to first
    order, the covariance of log pi and A *within* each token's distribution: E[(l + h) A] = Cov(log pi, A) there. With
    l, whose mean runs over the batch, it also has that *between* the tokens: uncertain tokens have low log-probs, and
    low or high advantages by where in the completions they are.

    Args:
        logps: (B, T) any float dtype, nats.
        entropies: (B, T) of the distributions that the tokens were drawn from, nats.

    """
    return logps + entropies.to(logps.dtype)


def rounding_error_K(tokens: Tokens) -> Tensor:
    """Bound on the rounding error of c in each group: (K,); a spread of c below it means nothing."""
    return 64 * torch.finfo(tokens.dtype).eps * tokens.max_K(tokens.l.abs_()) * tokens.max_K(tokens.A.abs_())


def token_covariance(logps: Tensor, advantages: Tensor, mask: Tensor, group_ids: Tensor | None = None) -> Tensor:
    """Covariance contribution of every token (arXiv 2605.11538, section 3).

    c_{i,t} = (l_{i,t} - mean(l)) * (A_i - mean(A)), both means over the valid tokens of the group.

    Args:
        logps: (B, T) any float dtype; log-probability of each sampled token under the policy that sampled it.
        advantages: (B,) or (B, T) any float dtype.
        mask: (B, T) bool or 0/1; valid completion tokens. What is stored at masked positions (NaN, inf) is ignored.
        group_ids: (B,) integers in any order and with gaps; rows with the same id form a group. ``None``: one group.

    Returns:
        (B, T) float32 (float64 for float64 ``logps``), 0 at masked positions, without gradient. Nats times advantage.
        Statistics are accumulated in float64 (float32 on devices without it).

    Raises:
        ValueError: a wrong shape or dtype; the sentence names the argument and its shape.

    """
    return evaluate(covariance, logps, advantages, mask, group_ids)
