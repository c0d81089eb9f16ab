"""Rows of different lengths, split so that little is padded."""

from torch import Tensor


def length_buckets(lengths: Tensor, cost: int) -> list[tuple[Tensor, int]]:
    """Split rows of different lengths so that little is padded: pairs of row indices and the bucket's width.

    Minimises  sum over buckets of (rows x width + cost)  over bounds at 1/32 steps of the longest row, by dynamic
    programming over the bounds.

    Args:
        lengths: (N,) integers.
        cost: of one more forward, in tokens.

    """
    device, lengths = lengths.device, lengths.cpu()
    step = max(1, -(-int(lengths.max()) // 32))
    bounds = sorted({-(-length // step) * step for length in lengths.tolist()})
    at_most = [int((lengths <= bound).sum()) for bound in bounds]
    best: list[tuple[int, int]] = []  # for the first k+1 bounds: least total, and where its last bucket begins
    for k, bound in enumerate(bounds):
        options = []
        for first in range(k + 1):
            before = at_most[first - 1] if first else 0
            options.append(((best[first - 1][0] if first else 0) + (at_most[k] - before) * bound + cost, first))
        best.append(min(options))
    buckets: list[tuple[Tensor, int]] = []
    k = len(bounds) - 1
    while k >= 0:
        first = best[k][1]
        inside = lengths <= bounds[k]
        if first:
            inside &= lengths > bounds[first - 1]
        rows = inside.nonzero()[:, 0]
        buckets.append((rows.to(device), int(lengths[rows].max())))
        k = first - 1
    return buckets[::-1]
