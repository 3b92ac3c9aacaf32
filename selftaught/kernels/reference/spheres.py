"""The nearest centre and the loss on its distance written out, forward and backward.

Shapes: N rows, K centres, D width.
"""

import torch
from torch import Tensor

from selftaught.kernels.reference.common import cast, compute_dtype
from selftaught.kernels.spheres import Mad, Nearest
from selftaught.semi_labels import KNOWN_ABNORMAL

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
        doubtful_N = within_NK.sum(1) > 1
        if torch._C._are_functorch_transforms_active():  # no shape may depend on values
            index_N = torch.where(doubtful_N, _settle(within_NK, part_ND, centers_KD), index_N)
        elif doubtful_N.any():
            doubtful = doubtful_N.nonzero()[:, 0]
            index_N[doubtful] = _settle(within_NK[doubtful], part_ND[doubtful], centers_KD)
        indices.append(index_N.masked_fill(~best_N.isfinite(), -1))
    return torch.cat(indices)


def _gradients(
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


class EagerSpheres:
    """`selftaught.kernels.spheres.Spheres` in formulas, for any device.

    The index comes from |c|^2 - 2xc about the centres' mean, and from direct differences where
    that leaves a doubt, ties going to the smallest; the distance is computed by direct difference,
    because the expansion loses every digit where points sit close to their centre.
    """

    def search(
        self,
        x: Tensor,
        centers: Tensor,
        active: Tensor | None,
        mad: Mad | None = None,
        counts: Tensor | None = None,
    ) -> Nearest:
        """See `Spheres`."""
        x_ND, centers_KD = x.to(compute_dtype(x)), centers.to(compute_dtype(x))
        with torch.no_grad():
            index_N = _nearest(x_ND, centers_KD, active)
        if counts is not None:
            counts += torch.bincount(index_N[index_N >= 0], minlength=len(counts))
        difference_ND = x_ND - centers_KD[index_N.clamp(min=0)]
        squared = difference_ND.square().sum(1).masked_fill(index_N < 0, float("nan"))
        if mad is None:
            return Nearest(squared, index_N)
        loss = torch.full_like(squared, float("nan"))
        loss = torch.where(mad.labels == 0, squared, loss)
        loss = torch.where(mad.labels == 1, mad.eta * (squared + mad.eps), loss)
        loss = torch.where(mad.labels == KNOWN_ABNORMAL, mad.eta / (squared + mad.eps), loss)
        return Nearest(squared, index_N, loss)

    def gradients(
        self,
        grad: Tensor,
        x: Tensor,
        centers: Tensor,
        nearest: Nearest,
        mad: Mad | None,
        needs: list[bool],
    ) -> list[Tensor]:
        """See `Spheres`."""
        if mad is not None:
            slope = torch.full_like(nearest.squared, float("nan"))
            slope = torch.where(mad.labels == 0, 1.0, slope)
            slope = torch.where(mad.labels == 1, mad.eta, slope)
            # Divided twice: the square of a small eps is 0 in float32.
            known = nearest.squared + mad.eps
            slope = torch.where(mad.labels == KNOWN_ABNORMAL, -mad.eta / known / known, slope)
            grad = grad * slope
        return _gradients(grad, x, centers, nearest.center, needs)
