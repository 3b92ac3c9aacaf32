"""The worst perturbations of images: their search, and the nearest vectors of a shell.

Goyal et al., "DROCC: Deep Robust One-Class Classification", ICML 2020, arXiv:2002.12718.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

HALVINGS = 60  # more than the digits of a float64
LEAST_SLOPE = 1e-12


@contextmanager
def running_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms of a module use their running statistics and leave them as they are."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


class Worst(NamedTuple):
    """Images that a search perturbed.

    Attributes:
        images: (B, 1, S, S) without gradient.
        before: (B,) logits of the images under the noise that the search began with.
        after: (B,) logits of `images`.
    """

    images: Tensor
    before: Tensor
    after: Tensor


def search(
    logit: Callable[[Tensor], Tensor],
    images: Tensor,
    masks: Tensor,
    start: Tensor,
    *,
    radius: Tensor,
    gamma: float,
    rate: Tensor,
    steps: int,
    limits: tuple[float, float] = (-math.inf, math.inf),
    weighted: bool = False,
) -> Worst:
    """Perturbations for which "abnormal" is the least likely, by projected gradient ascent.

    The cross-entropy of "abnormal" rises where the logit falls; their normalised gradients are
    each other's opposites, and the logit's does not vanish where the network is certain.

    Args:
        logit: images (B, 1, S, S) -> logits of abnormal (B,), each of its own image alone.
        images: (B, 1, S, S), 0 outside their masks.
        masks: (B, 1, S, S) in [0, 1]; nothing is perturbed outside.
        start: (B, 1, S, S) noise.
        radius: (B,) norm of the smallest perturbation.
        gamma: norm of the largest one, in radii.
        rate: (B,) norm of a step.
        steps: ascents; each ends on the shell between both norms.
        limits: lowest and highest pixel. Perturbed images are cut to them, after the projection.
        weighted: measure perturbations by the logit's slopes at `images`, of mean 1 inside masks.
    """

    def slope(at: Tensor) -> tuple[Tensor, Tensor]:
        at = at.detach().requires_grad_()
        value = logit(at)
        # Of the images alone: no parameter's gradient is touched.
        return value.detach(), torch.autograd.grad(value.sum(), at)[0] * masks

    weight = _slopes(slope(images)[1], masks) if weighted else None

    def perturb(h: Tensor) -> Tensor:
        if weight is None:
            h = project_shell(h, radius, gamma * radius)
        else:
            h = project_weighted_shell(h, weight, radius, gamma * radius)
        return (images + h).clamp(*limits)

    perturbed, before = perturb(start * masks), None
    for _ in range(steps):
        value, gradient = slope(perturbed)
        before = value if before is None else before
        norm = gradient.flatten(1).norm(dim=1).clamp_min(LEAST_SLOPE)
        perturbed = perturb(perturbed - images - _each(rate / norm, images) * gradient)
    with torch.no_grad():
        after = logit(perturbed)
    return Worst(perturbed, after if before is None else before, after)


def _slopes(gradient: Tensor, masks: Tensor) -> Tensor:
    """Absolute slopes (B, 1, S, S) scaled to mean 1 inside masks; 1 for a flat logit."""
    slopes, area = gradient.abs(), masks.flatten(1).sum(1)
    mean = slopes.flatten(1).sum(1) / area.clamp_min(1)
    flat = _each(mean < LEAST_SLOPE, masks)
    return torch.where(flat, masks, slopes / _each(mean.clamp_min(LEAST_SLOPE), masks))


def _each(values: Tensor, like: Tensor) -> Tensor:
    """Values (B,) that broadcast against `like` (B, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))


def project_shell(z: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
    """The nearest vectors h with inner <= |h| <= outer; zeros, which point nowhere, stay.

    Args:
        z: (B, ...).
        inner: (B,) smallest norm.
        outer: (B,) largest norm, `inner` or more.
    """
    norm = z.flatten(1).norm(dim=1)
    return z * _each(norm.clamp(inner, outer) / torch.where(norm > 0, norm, 1), z)


def project_weighted_shell(z: Tensor, weight: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
    """The nearest vectors h with inner <= sqrt(sum weight h^2) <= outer; zeros stay.

    Stationary points are h = z / (1 + t weight). From t = -1 / max(weight) on the weighted norm
    falls in t, and the nearest h lies there: at t < 0 where z is inside, at t > 0 where it is
    outside. With u = 1 + t max(weight) > 0 both cases are one bisection, without cancellation.

    Args:
        z: (B, ...), 0 where `weight` is.
        weight: as `z`, 0 or more.
        inner: (B,) smallest weighted norm.
        outer: (B,) largest weighted norm, `inner` or more.
    """
    flat, root = z.flatten(1), weight.flatten(1).sqrt()
    tiny = torch.finfo(z.dtype).tiny
    scaled = root * flat
    norm = scaled.norm(dim=1)
    target = norm.clamp(inner, outer)
    inside, outside = norm < inner, norm > outer
    top = root.amax(1).clamp_min(tiny)
    share = (root / top[:, None]).square()
    rest = 1 - share  # so that 1 + t weight = rest + u share is exact where it is small
    # The largest of the coordinates with the largest weight alone reaches the target at `low`.
    peak, where = torch.where(share == 1, flat.abs(), -1).max(1)
    low = torch.where(inside, top * peak.clamp_min(0) / target.clamp_min(tiny), 1).clamp_max(1)
    # As weight / (1 + t weight)^2 <= 1 / 4t for any weight, the norm is below the target here.
    bound = (top * flat.norm(dim=1) / target.clamp_min(tiny)).square() / 4
    high = torch.where(outside, 1 + bound, 1)
    hard = low == 0
    for _ in range(HALVINGS):
        u = (low + high) / 2
        longer = (scaled / torch.addcmul(rest, u[:, None], share)).norm(dim=1) > target
        low, high = torch.where(longer, u, low), torch.where(longer, high, u)
    stretch = torch.addcmul(rest, high[:, None], share)
    h = flat / stretch
    # Where z has nothing along the largest weight, even u = 0 may fall short: the rest of the
    # norm lies along it, in either direction.
    missing = (target.square() - (scaled / stretch).square().sum(1)).clamp_min(0).sqrt() / top
    extra = torch.where(hard & (norm > 0), missing, 0)
    return h.scatter_add(1, where[:, None], extra[:, None]).view_as(z)


def masked_deviation(batches: Iterator[tuple[Tensor, Tensor]]) -> float:
    """Standard deviation of pixels inside masks, of views and masks of equal shapes.

    NaN without any pixel.
    """
    sums = torch.zeros(3, dtype=torch.float64)
    for views, masks in batches:
        x, m = views.double(), masks.double()
        sums += torch.stack([m.sum(), (m * x).sum(), (m * x * x).sum()]).cpu()
    area, first, second = sums.tolist()
    return math.sqrt(max(second / area - (first / area) ** 2, 0.0)) if area else math.nan
