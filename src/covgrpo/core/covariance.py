"""Token covariance, the quantity that drives the policy's entropy.

To first order a step of natural policy gradient changes the entropy by dH ~ -eta * Cov(log pi, A) (arXiv 2505.22617),
so the tokens with an extreme contribution to that covariance drive entropy collapse (c > 0) or explosion (c < 0).
"""

import torch
from torch import Tensor

from covgrpo.core.groups import Block, GroupedTokens, TokenFunction

# Advantages of one group that differ by no more than this are one advantage: rewards that are all equal give A = 0, but
# in float32 often +-1e-9. Normalised advantages are of order one.
ADVANTAGE_NOISE = 1e-7


class Covariance:
    """c_{i,t} of a batch, evaluated block by block (a ``TokenFunction``).

    c_{i,t} = (l_{i,t} - mean(l)) * (A_{i,t} - mean(A))        arXiv 2605.11538, section 3

    Both means run over the valid tokens of the token's group, so mean(A) is token-weighted and not 0 where the lengths
    of the completions differ.

    """

    def __init__(self, tokens: GroupedTokens):
        self.tokens = tokens
        self._take_means()
        self.flat_A_K = tokens.max(lambda block: self.a(block).abs()) <= ADVANTAGE_NOISE

    def _take_means(self) -> None:
        self.mean_l_K = self.tokens.mean(lambda block: block.logps)
        self.mean_A_K = self.tokens.mean(lambda block: block.advantages)

    def __call__(self, block: Block) -> Tensor:
        """Return c (b, T) of a block."""
        c = self._centred_logps(block) * self.a(block)
        return c.masked_fill(self.flat_A_K[block.group, None], 0)

    def a(self, block: Block) -> Tensor:
        """Return A - mean(A), (b, T)."""
        return block.advantages - self.mean_A_K[block.group, None]

    def _centred_logps(self, block: Block) -> Tensor:
        return block.logps - self.mean_l_K[block.group, None]

    def gradient(self, dL_dc: TokenFunction) -> TokenFunction:
        """dL/dl from dL/dc: a dL/dc, less its mean over the tokens that share the mean of l."""
        mean_K = self.tokens.mean(lambda block: self.a(block) * dL_dc(block))
        return lambda block: self.a(block) * dL_dc(block) - mean_K[block.group, None]

    def rounding_error(self) -> Tensor:
        """Bound on the rounding error of c in each group: (K,); a spread of c below it means nothing."""
        max_l_K = self.tokens.max(lambda block: block.logps.abs())
        max_A_K = self.tokens.max(lambda block: block.advantages.abs())
        return 64 * torch.finfo(self.tokens.dtype).eps * max_l_K * max_A_K


class CompletionCovariance(Covariance):
    """c_{i,t} = (l_{i,t} - mean_t(l_i)) * (A_i - mean_j(A_j)): as in the code of the paper's first author.

    The mean of l runs over the completion's own tokens, the mean of A over the group's completions (each counts once,
    by the mean over its tokens where A differs between them; one without valid tokens does not count).
    """

    def _take_means(self) -> None:
        tokens = self.tokens
        self.mean_l_B = tokens.row_mean(lambda block: block.logps)
        A_B, any_B = tokens.row_mean(lambda block: block.advantages), (tokens.num_tokens_B > 0).to(tokens.dtype)
        self.mean_A_K = tokens.sum_rows(A_B * any_B) / tokens.sum_rows(any_B).clamp(min=1)

    def _centred_logps(self, block: Block) -> Tensor:
        return block.logps - self.mean_l_B[block.rows, None]

    def gradient(self, dL_dc: TokenFunction) -> TokenFunction:
        """dL/dl from dL/dc: a dL/dc, less its mean over the completion's tokens."""
        mean_B = self.tokens.row_mean(lambda block: self.a(block) * dL_dc(block))
        return lambda block: self.a(block) * dL_dc(block) - mean_B[block.rows, None]


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
    tokens = GroupedTokens(logps, advantages, mask, group_ids)
    return tokens.map(Covariance(tokens))
