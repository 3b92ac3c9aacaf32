"""The losses written from their papers, row by row and plainly, in the dtype of their input.

In float64 they are the truth; in float32 they are the eager code users have today.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def unit(z: Tensor) -> Tensor:
    length = z.norm(dim=1, keepdim=True)
    return torch.where(length > 0, z / torch.where(length > 0, length, 1), torch.zeros_like(z))


def ntxent(z1: Tensor, z2: Tensor, tau, normalize: bool = True) -> Tensor:
    z = torch.cat([z1, z2])
    z = unit(z) if normalize else z
    many = len(z1)
    logits = z @ z.T / tau
    logits = logits.masked_fill(torch.eye(2 * many, dtype=torch.bool), float("-inf"))
    target = torch.cat([torch.arange(many) + many, torch.arange(many)])
    return F.cross_entropy(logits, target, reduction="none")


def supcon(z1: Tensor, z2: Tensor, labels: Tensor, tau, normalize: bool = True) -> Tensor:
    z = torch.cat([z1, z2])
    z = unit(z) if normalize else z
    many, losses = len(z1), []
    for row in range(2 * many):
        others = [j for j in range(2 * many) if j != row]
        logits = z[others] @ z[row] / tau
        log_probability = logits - logits.logsumexp(0)
        mine = labels[row % many]
        positives = [
            place
            for place, j in enumerate(others)
            if j % many == row % many or (mine >= 0 and labels[j % many] == mine)
        ]
        losses.append(-log_probability[positives].mean())
    return torch.stack(losses)


def info_nce(query, key, negatives, tau, symmetric: bool = False, normalize: bool = True) -> Tensor:
    if normalize:
        query, key = unit(query), unit(key)
        negatives = None if negatives is None else unit(negatives)
    keys = key if negatives is None else torch.cat([key, negatives])
    target = torch.arange(len(query))
    losses = [F.cross_entropy(query @ keys.T / tau, target, reduction="none")]
    if symmetric:
        losses.append(F.cross_entropy(key @ query.T / tau, target, reduction="none"))
    return torch.cat(losses)


def queue(query, key, negatives, tau, normalize: bool = True) -> Tensor:
    if normalize:
        query, key, negatives = unit(query), unit(key), unit(negatives)
    positive = (query * key).sum(1, keepdim=True)
    logits = torch.cat([positive, query @ negatives.T], 1) / tau
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64), reduction="none")


def nearest(x: Tensor, centers: Tensor, active: Tensor | None = None) -> tuple[Tensor, Tensor]:
    squared = (x[:, None] - centers[None]).square().sum(2)
    if active is not None:
        squared = squared.masked_fill(~active, float("inf"))
    index = squared.detach().argmin(1)
    return squared.gather(1, index[:, None])[:, 0], index


def mad(x, centers, semi_labels, eta: float, eps: float, active=None) -> Tensor:
    squared, _ = nearest(x, centers, active)
    losses = []
    for d2, y in zip(squared, semi_labels.tolist(), strict=True):
        losses.append(d2 if y == 0 else eta * (d2 + eps) ** y)
    return torch.stack(losses)


def relative_error(value: Tensor, truth: Tensor) -> float:
    """Largest error over the largest entry, both in float64."""
    value, truth = value.detach().double(), truth.detach().double()
    return float((value - truth).abs().max() / truth.abs().max().clamp(min=1e-300))


def views(images: int, width: int, noise: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two float64 views: a random point of an image, plus `noise` in every view."""
    generator = torch.Generator().manual_seed(seed)
    shape = (images, width)
    point = torch.randn(shape, dtype=torch.float64, generator=generator)
    z1 = point + noise * torch.randn(shape, dtype=torch.float64, generator=generator)
    z2 = point + noise * torch.randn(shape, dtype=torch.float64, generator=generator)
    return z1, z2


def gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Gradients of a weighted sum, so that equal and unequal rows are told apart."""
    weights = torch.linspace(0.5, 1.5, loss.numel(), dtype=loss.dtype)
    return list(torch.autograd.grad((loss * weights).sum(), inputs))
