"""The nearest centre and the loss on its distance written out, forward and backward.

Shapes: N rows, K centres, D width.
"""

import torch
from torch import Tensor

from selftaught.kernels.reference.common import cast, compute_dtype

CHUNK_SCORES = 1 << 24  # (rows, K) scores alive at once in the search for the nearest centre


def _settle(within_NK: Tensor, x_ND: Tensor, centers_KD: Tensor) -> Tensor:
    """(N,) index of the first of the nearest centres of those marked, by direct difference."""
    indices = []
    rows = max(1, CHUNK_SCORES // centers_KD.numel())
    for part_ND, marked_NK in zip(x_ND.split(rows), within_NK.split(rows), strict=True):
        squared_NK = (part_ND[:, None] - centers_KD).square().sum(2)
        indices.append(squared_NK.masked_fill(~marked_NK, float("inf")).argmin(1))
    return torch.cat(indices)


def _nearest(x_ND: Tensor, centers_KD: Tensor, active: Tensor | None) -> Tensor:
    """(N,) index of the nearest active centre, -1 where no score is finite.

    Scores are float64 where there is such a thing. Centres whose scores rounding could have
    exchanged are compared by direct difference.
    """
    if x_ND.device.type != "mps":
        x_ND, centers_KD = x_ND.double(), centers_KD.double()
    if active is not None:
        centers_KD = centers_KD.masked_fill(~active[:, None], 0)
    many = centers_KD.shape[0] if active is None else active.sum()
    # Moving the origin among the centres keeps |c|^2 - 2xc from cancelling on offset data.
    origin_D = centers_KD.sum(0) / many
    moved_KD = centers_KD - origin_D
    length_K = moved_KD.square().sum(1)
    rounding = 2 * (x_ND.shape[1] + 8) * torch.finfo(x_ND.dtype).eps
    longest = length_K.max().sqrt()
    if active is not None:
        length_K = length_K.masked_fill(~active, float("inf"))
    indices = []
    for part_ND in x_ND.split(max(1, CHUNK_SCORES // centers_KD.shape[0])):
        from_origin_ND = part_ND - origin_D
        score_NK = length_K - 2 * (from_origin_ND @ moved_KD.T)
        best_N, index_N = score_NK.min(1)
        reach_N = (from_origin_ND.norm(dim=1) + longest).square()
        within_NK = score_NK <= (best_N + rounding * reach_N)[:, None]
        doubtful = torch.nonzero(within_NK.sum(1) > 1)[:, 0]
        if len(doubtful):
            index_N[doubtful] = _settle(within_NK[doubtful], part_ND[doubtful], centers_KD)
        indices.append(index_N.masked_fill(~best_N.isfinite(), -1))
    return torch.cat(indices)


def nearest_center(
    x: Tensor, centers: Tensor, active: Tensor | None, precision: str
) -> tuple[Tensor, Tensor]:
    """Squared distance to, and index of, the nearest centre.

    The index comes from |c|^2 - 2xc about the centres' mean, and from direct differences where
    that leaves a doubt, ties going to the smallest; the distance is computed by direct difference,
    because the expansion loses every digit where points sit close to their centre.

    Args:
        x: (N, D) points.
        centers: (K, D) centres.
        active: (K,) bool, False for a centre that is never nearest, or None.
        precision: lowest precision of matrix products a backend may use.

    Returns:
        (N,) squared distances, float32 (float64 for float64 x), and (N,) int64 indices; NaN and
        -1 for a row with a non-finite entry, and for every row where no centre is active.
    """
    x_ND, centers_KD = x.to(compute_dtype(x)), centers.to(compute_dtype(x))
    with torch.no_grad():
        index_N = _nearest(x_ND, centers_KD, active)
    difference_ND = x_ND - centers_KD[index_N.clamp(min=0)]
    squared_N = difference_ND.square().sum(1)
    return squared_N.masked_fill(index_N < 0, float("nan")), index_N


def _nearest_backward(
    grad_N: Tensor, x: Tensor, centers: Tensor, index: Tensor, needs: list[bool]
) -> list[Tensor]:
    x_ND, centers_KD = x.to(compute_dtype(x)), centers.to(compute_dtype(x))
    nearest_N = index.clamp(min=0)
    grad_N = grad_N.masked_fill(index < 0, float("nan"))
    grad_ND = (2 * grad_N)[:, None] * (x_ND - centers_KD[nearest_N])
    grad_KD = grad_ND
    if needs[1]:
        grad_KD = torch.zeros_like(centers_KD).index_add(0, nearest_N, -grad_ND)
    return cast([grad_ND, grad_KD], [x, centers], needs)


def nearest_center_backward(
    grad: Tensor,
    x: Tensor,
    centers: Tensor,
    active: Tensor | None,
    precision: str,
    squared: Tensor,
    index: Tensor,
    needs: list[bool],
) -> list[Tensor]:
    """Gradients of sum(grad * squared distance) by x and centers."""
    return _nearest_backward(grad, x, centers, index, needs)


def mad(
    x: Tensor,
    centers: Tensor,
    semi_labels: Tensor,
    active: Tensor | None,
    eta: float,
    eps: float,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Multi-modal anomaly detection loss of every row (paper, Eq. 2).

    Args:
        x: (N, D) embeddings.
        centers: (K, D) centres.
        semi_labels: (N,) integers: 0 unknown, +1 known normal, -1 known abnormal.
        active: (K,) bool, False for a centre that is never nearest, or None.
        eta: weight of the known samples.
        eps: added to the squared distance of the known samples.
        precision: lowest precision of matrix products a backend may use.

    Returns:
        (N,) losses, (N,) squared distances to and (N,) indices of the nearest centres. The
        distances carry no gradient. A row with any other semi-label has loss NaN.
    """
    squared, index = nearest_center(x, centers, active, precision)
    loss = torch.full_like(squared, float("nan"))
    loss = torch.where(semi_labels == 0, squared, loss)
    loss = torch.where(semi_labels == 1, eta * (squared + eps), loss)
    return torch.where(semi_labels == -1, eta / (squared + eps), loss), squared, index


def mad_backward(
    grad: Tensor,
    x: Tensor,
    centers: Tensor,
    semi_labels: Tensor,
    active: Tensor | None,
    eta: float,
    eps: float,
    precision: str,
    loss: Tensor,
    squared: Tensor,
    index: Tensor,
    needs: list[bool],
) -> list[Tensor]:
    """Gradients of sum(grad * loss) by x and centers."""
    slope = torch.full_like(squared, float("nan"))
    slope = torch.where(semi_labels == 0, 1.0, slope)
    slope = torch.where(semi_labels == 1, eta, slope)
    # Divided twice: the square of a small eps is 0 in float32.
    slope = torch.where(semi_labels == -1, -eta / (squared + eps) / (squared + eps), slope)
    return _nearest_backward(grad * slope, x, centers, index, needs)
