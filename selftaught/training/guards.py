"""Guards against silent collapse: figures of an embedding, and what is wrong with them.

The published runs kept one or two of 100 centres because their two stages saw inputs 255 times
apart, and nothing said so. Each guard returns sentences with the figure; none of them is silent.
"""

import torch
from torch import Tensor

SPREAD_SHARE = 1e-3
SCORE_RANGE = 1e-6


def spread(z: Tensor) -> float:
    """Standard deviation per dimension, averaged over dimensions.

    Args:
        z: (N, D) embeddings.
    """
    return float(z.double().std(dim=0, unbiased=False).mean())


def effective_rank(z: Tensor) -> float:
    """Exponential of the entropy of the covariance's normalised singular values, 1 to D.

    Args:
        z: (N, D) embeddings (Roy and Vetterli, 2007).
    """
    centred = z.double() - z.double().mean(dim=0)
    values = torch.linalg.svdvals(centred)
    share = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return float(torch.exp(-(share * torch.log(share.clamp_min(1e-300))).sum()))


def check_spread(now: float, initial: float) -> list[str]:
    """Collapse of the embedding against its first spread."""
    if now < SPREAD_SHARE * initial:
        return [
            f"the embedding has collapsed: its spread per dimension is {now:.3g}, "
            f"{now / max(initial, 1e-300):.1e} of the initial {initial:.3g}"
        ]
    return []


def check_scores(scores: Tensor) -> list[str]:
    """Scores that do not tell images apart.

    Args:
        scores: (N,) anomaly scores.
    """
    if scores.numel() > 1 and float(scores.max() - scores.min()) <= SCORE_RANGE:
        return [f"all {scores.numel()} scores agree to {SCORE_RANGE:g}: the model has collapsed"]
    return []


def check_batch_statistics(trained: Tensor, evaluated: Tensor) -> list[str]:
    """Batch statistics and running statistics that give different embeddings.

    Args:
        trained: (N, D) embeddings of some images with batch statistics.
        evaluated: (N, D) embeddings of the same images with running statistics.
    """
    gap = float((trained.double() - evaluated.double()).norm(dim=1).mean())
    centred = evaluated.double() - evaluated.double().mean(dim=0)
    size = float(centred.norm(dim=1).mean())
    if gap > size and trained.shape[0] > 1:
        return [
            f"batch and running statistics disagree: the same images' embeddings lie {gap:.3g} "
            f"apart, further than images lie from their mean ({size:.3g})"
        ]
    return []
