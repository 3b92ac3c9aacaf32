"""Mahalanobis distance of a frozen encoder's features to those of normal images."""

import torch
from torch import Tensor, nn

from selftaught.methods.frozen import (
    BOTH_VIEWS,
    IMAGENET,
    Frozen,
    FrozenOptions,
    standardisation,
)
from selftaught.methods.task import Rows, Start, System
from selftaught.models.bank import statistics
from selftaught.models.encoder import Encoder
from selftaught.models.network import Network


class Mahalanobis(Frozen):
    """Distance to the mean of normal images under their covariance, shrunk by Ledoit and Wolf.

    Of standardised features of plain and mirror images (Ledoit and Wolf 2004; scikit-learn). No
    label of an abnormal image is used but to leave it out.
    """

    score_name = "Mahalanobis distance to normal images"
    mean: Tensor
    root: Tensor

    def __init__(self, options: FrozenOptions, network: Network) -> None:
        super().__init__(options, network)
        width = self.encoder.width
        self.register_buffer("mean", torch.zeros(width))
        # Columns whose inner products with x - mean are uncorrelated, of variance 1.
        self.register_buffer("root", torch.zeros(width, width))

    def remember(self, start: Start, rows: Rows) -> None:
        """Fit mean and covariance."""
        features = self.both_views(start, rows)
        mean, root = start.alone(lambda: fit_gaussian(features))
        self.mean.copy_(mean)
        self.root.copy_(root)

    def scorer(self) -> nn.Module:
        """The distance."""
        return MahalanobisScorer(self.encoder, self.mean, self.root)


class MahalanobisScorer(nn.Module):
    """Images -> Mahalanobis distance of their features."""

    mean: Tensor
    root: Tensor

    def __init__(self, encoder: Encoder, mean: Tensor, root: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mean", mean)
        self.register_buffer("root", root)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """`score` (B,), and the features `h`."""
        h = self.encoder(images)
        return {"score": ((h.to(self.mean) - self.mean) @ self.root).norm(dim=1), "h": h}


def fit_gaussian(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (W,), and R (W, W) with R R' the precision of features (N, W) as they are, float64."""
    mean, deviation = standardisation(features)
    _, root = statistics((features - mean) / deviation)
    return mean, root / deviation[:, None]


TASKS = {"mahalanobis": Mahalanobis}
SYSTEMS = {
    "frozen-mahalanobis": System(
        "Mahalanobis distance on ImageNet features",
        pretext="imagenet",
        finetune="mahalanobis",
        changes=IMAGENET,
        note=BOTH_VIEWS + "standardised; covariance of Ledoit and Wolf. No abnormal label is used.",
        extra=True,
    ),
}
