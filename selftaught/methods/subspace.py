"""Subspaces of embeddings that distances are measured from (paper, Sec. 8.2 of its supplement).

After Devos and Grossglauser 2019, arXiv:1905.13613, who have fewer embeddings than dimensions.
"""

import torch
from torch import Tensor

from selftaught.semi_labels import KNOWN_ABNORMAL

BANK = 10_000  # embeddings that a subspace is fitted to, at most
VARIANCE = 0.95  # of the bank, held by the principal directions
RIDGE = 1e-3
EPSILON = 1e-6  # added to the squared distance of known images


def principal_subspace(z: Tensor, share: float = VARIANCE) -> tuple[Tensor, Tensor, float]:
    """Mean and leading principal directions of embeddings (N, D), float64.

    The directions are the fewest that hold a `share` of the variance, at most D / 2.

    Returns:
        The mean (D,), the projection (D, D) off the directions, and 1e-6 times the mean squared
        distance of the embeddings to the subspace through the mean.
    """
    origin = z.mean(0)
    apart = z - origin
    variances, directions = torch.linalg.eigh(apart.T @ apart / len(z))
    held = variances.flip(0).cumsum(0)
    count = int((held < share * held[-1]).sum()) + 1
    others = directions[:, : -min(count, z.shape[1] // 2)]
    off = others @ others.T
    residual = float((apart @ off).square().sum(1).mean())
    return origin, off, max(EPSILON * residual, torch.finfo(torch.float32).tiny)


def regularised_span(z: Tensor) -> tuple[Tensor, Tensor, float]:
    """What (S S' + ridge)^-1 S S' of embeddings S' (N, D), float64, leaves.

    The published inverse was N x N in float32, of rank D alone, and gave noise; this is D x D.

    Returns:
        The origin 0 (D,), the projection (D, D) off the span, ridge (S S' + ridge)^-1, and the
        published epsilon.
    """
    gram = z.T @ z
    ridge = RIDGE * torch.eye(len(gram), dtype=z.dtype)
    return torch.zeros_like(gram[0]), RIDGE * torch.linalg.inv(gram + ridge), EPSILON


def deep_sad(squared: Tensor, known: Tensor, eta: float, epsilon: Tensor) -> Tensor:
    """Deep SAD's loss of squared distances (B,), as `mad_loss` of points.

    Its epsilon is a tensor here, which changes with the subspace and is not waited for.

    Args:
        squared: (B,) squared distances.
        known: (B,) -1, 0, +1.
        eta: weight of known images.
        epsilon: 0-d, added to their squared distances.
    """
    raised = squared + epsilon
    return torch.where(
        known == 0, squared, eta * torch.where(known == KNOWN_ABNORMAL, 1 / raised, raised)
    )
