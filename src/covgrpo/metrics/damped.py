"""The tokens that a weighting tames most."""

from torch import Tensor

from covgrpo.metrics.tokens import StepTokens


def most_damped(tokens: StepTokens, count: int) -> Tensor:
    """Return the indices of the ``count`` tokens with the smallest weight, the largest |c| first among equal weights.

    A negative weight, which turns the token's push round, is smaller than any other.

    Where nothing is weighted these are the tokens with the most extreme covariance. Tokens of zero advantage, which
    the update leaves as they are, do not count.
    """
    index = (tokens.advantages != 0).nonzero()[:, 0]
    index = index[tokens.c[index].abs().argsort(descending=True, stable=True)]
    return index[tokens.weights[index].argsort(stable=True)][:count]
