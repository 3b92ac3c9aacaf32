"""Means over the images that count, of all ranks."""

from torch import Tensor

from selftaught import distributed


def per_counted(counted: Tensor) -> Tensor:
    """What a rank multiplies its sum by, so that the ranks' mean is the mean of all that count.

    Ranks differ in how much counts: the mean of their own means would be another number. Gradients
    are averaged over ranks, so that each gives its sum times their number over the whole count.

    Args:
        counted: numbers of this rank, of which the sum is its count, such as weights or a mask.

    Returns:
        0-d, of the kind of `counted`; a count below 1 is taken as 1. All ranks call alike.
    """
    total = distributed.sum_over_ranks(counted.detach().sum())
    return distributed.world_size() / total.clamp(min=1)


def mean_above_zero(own: Tensor) -> Tensor:
    """What a rank gives, so that the ranks' mean is max(0, mean of `own`), gradients too.

    Args:
        own: 0-d, of this rank; all ranks call alike.
    """
    total = distributed.sum_over_ranks(own.detach().clone())
    return own * (total > 0)
