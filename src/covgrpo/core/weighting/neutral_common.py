"""Covariance-neutral weights that leave rare tokens alone: the push on mistakes and on rare right tokens is kept.

To first order dH ~ -eta mean(w c) (arXiv 2505.22617), c = (l - mean(l)) (A - mean(A)). Its sign parts the tokens in
four, by how likely they are (common: l > mean(l)) and by the side of the completion (right: A > mean(A)):

    token    completion   c     its push                                to first order, entropy
    common   right        > 0   raises what is likely already           falls
    rare     right        < 0   raises what was seldom tried            rises
    common   wrong        < 0   lowers what is likely                   rises
    rare     wrong        > 0   lowers what is unlikely: most mistakes  falls

Entropy falls where the two parts with c > 0 outweigh the others, mean(c) > 0. Of these, the rare tokens of wrong
completions are where mistakes are unlearnt, and what the kernel takes from them is lost. So only the **common tokens of
right completions** can pay: they need no push, being likely already. To damp the common tokens of wrong completions,
the remaining part, would lower the entropy further. Where it rises instead, mean(c) < 0, the same reasoning leaves only
those: the **common tokens of wrong completions**, most of which are no mistakes.

How much: as much as takes the mean covariance to 0, and the same share delta of each token, whatever its A, so that
right completions are not damped more for being rare. With D the common tokens whose c has the sign of mean(c),
f = |D| / N,

    w     = 1 - delta on D, 1 elsewhere;   w~ = w N / sum(w)
    delta = sum(c) / sum_D(c),   then sum(w c) = sum(c) - delta sum_D(c) = 0

bounded by w >= 0, delta <= 1, and by an effective sample size of at least 1/2, as in ``neutral``:

    (sum w)^2 / (N sum w^2) = (1 - f delta)^2 / (1 - 2 f delta + f delta^2) >= 1/2
    <=>  1 - 2 f delta + (2 f^2 - f) delta^2 >= 0  <=>  delta <= 1 / (f + sqrt(f (1 - f)))    (above 1 for f < 1/2)

Where a bound acts, the mean covariance is lowered, not taken to 0. The statistics of one group are few; the preset's
scope is ``batch``.

**Its price.** ``neutral`` moves weight by c and so mostly that of rare tokens; this moves that of common ones and needs
a larger change of more tokens for the same covariance. And a weight that depends on both the likelihood and the side
does not average out: where the reward does not depend on the token, GRPO's expected update is 0, and this one's is
-delta E[max(A, 0)] grad P(common), mass moved from common to rare tokens. An entropy bonus does the same; here its size
is what neutrality asks for.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from covgrpo.core.covariance import covariance, rounding_error_K
from covgrpo.core.tokens import Tokens
from covgrpo.core.weighting.base import ColumnWeighting


@dataclass(frozen=True)
class NeutralCommon(ColumnWeighting):
    """``neutral_common``: 1 - delta on the common tokens whose c has the sign of mean(c), then mean 1.

    delta is the same for all of them and takes the mean covariance to 0 where it can (see the module's text). No
    hyperparameter. Rare tokens, l <= mean(l), are never damped.
    """

    def weigh(self, tokens: Tokens) -> Tensor:
        """Return w~ (N,)."""
        c, l = covariance(tokens), tokens.l  # noqa: E741 (as in the formula)
        sum_K = tokens.sum_K(c)
        # c of rounding error has no sign: such a token is on neither side
        damped = (l > tokens.mean(l)) & (c * tokens.each(sum_K.sign()) > tokens.each(rounding_error_K(tokens)))
        part_K = tokens.sum_K(c.where(damped, 0))
        f_K = tokens.sum_K(damped.to(c.dtype)) / tokens.num_tokens_K
        delta_K = torch.where(part_K == 0, 0, sum_K / part_K)
        delta_K = torch.minimum(delta_K, 1 / (f_K + (f_K * (1 - f_K)).sqrt())).clamp(max=1)
        w = torch.where(damped, 1 - tokens.each(delta_K), 1)
        return w / tokens.mean(w)
