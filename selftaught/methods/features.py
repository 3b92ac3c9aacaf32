"""Features of a frozen encoder with neighbours, a Gaussian or a linear classifier behind them."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from selftaught.data.augment import Augment, finetune_augment
from selftaught.errors import InputError, require
from selftaught.methods.begin import sample, take_encoder
from selftaught.methods.task import Options, Rows, Start, System, Task
from selftaught.methods.weights import WeightsOptions
from selftaught.models.bank import statistics
from selftaught.models.encoder import Encoder
from selftaught.models.network import Network
from selftaught.search import knn_score
from selftaught.semi_labels import KNOWN_ABNORMAL, KNOWN_NORMAL


@dataclass(frozen=True, kw_only=True)
class FrozenOptions(WeightsOptions):
    """Features that are not trained further.

    Args:
        normals: who counts as normal: all images not known to be abnormal, or the known ones.
    """

    augment: Augment = field(default_factory=finetune_augment)
    normals: Literal["all", "known"] = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        fine = self.normals in ("all", "known")
        require("normals", self.normals, "all, known", fine)


@dataclass(frozen=True, kw_only=True)
class NeighboursOptions(FrozenOptions):
    """Distances to nearest neighbours.

    Args:
        neighbours: k of the mean distance.
        memory: most images that are remembered; drawn where there are more.
    """

    neighbours: int = 100
    memory: int = 65536

    def __post_init__(self) -> None:
        super().__post_init__()
        require("neighbours", self.neighbours, "1 or more", self.neighbours >= 1)
        require("memory", self.memory, "1 or more", self.memory >= 1)


@dataclass(frozen=True, kw_only=True)
class LogisticOptions(FrozenOptions):
    """Logistic regression on standardised features.

    Args:
        inverse_regularisation: scikit-learn's C: weight of the losses against half the squared
            norm of the coefficients.
    """

    inverse_regularisation: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        inverse = self.inverse_regularisation
        require("inverse_regularisation", inverse, "above 0", 0 < inverse < math.inf)


class Frozen(Task):
    """The encoder of the stage before, and what is remembered of images that count as normal."""

    Options: ClassVar[type[Options]] = FrozenOptions
    options: FrozenOptions

    def __init__(self, options: FrozenOptions, network: Network) -> None:
        super().__init__(options, network)
        self.encoder = network.embedder().encoder

    def check(self, labels: Tensor) -> None:
        """Refuse training images of which none counts as normal."""
        if self.options.normals == "known" and not (labels == KNOWN_NORMAL).any():
            raise ValueError(
                "normals is 'known', but no training image is known to be normal; allowed: all, or "
                "split.known_normal above 0"
            )
        if not (labels != KNOWN_ABNORMAL).any():
            raise ValueError(
                f"method is {self.options.method!r}, but all training images are known to be "
                "abnormal; allowed: one or more that are not"
            )

    def begin(self, start: Start) -> None:
        """Take the encoder over and fill the memory."""
        take_encoder(self.options.method, start, self.encoder)
        self.eval()
        with torch.no_grad():
            labels = start.labels.numpy()[start.rows]
            known = self.options.normals == "known"
            counts = labels == KNOWN_NORMAL if known else labels != KNOWN_ABNORMAL
            self.remember(start, start.rows[counts])

    def remember(self, start: Start, rows: Rows) -> None:
        """Fill the buffers from images that count as normal."""
        raise NotImplementedError

    def both_views(self, start: Start, rows: Rows) -> Tensor:
        """H (2 N, W) in float64 of plain images, then of their mirror images; none = refused.

        Left and right limbs are one kind, and a frozen encoder does not know that.
        """
        plain = start.features(rows, mirrored=False).double()
        if not len(plain):
            raise InputError(f"{self.options.method}: no training image of a kind can be read")
        return torch.cat([plain, start.features(rows, mirrored=True).double()])

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """H of images, twice: there is no head."""
        h = self.encoder(images)
        return h, h

    def frozen(self) -> Encoder | None:
        """The encoder."""
        return self.encoder

    def backbone(self) -> nn.Module:
        """The encoder."""
        return self.encoder


class Neighbours(Frozen):
    """Mean distance of the pooled features to the nearest that are remembered."""

    Options = NeighboursOptions
    score_name = "mean distance to the nearest neighbours"
    options: NeighboursOptions
    memory: Tensor
    count: Tensor

    def __init__(self, options: NeighboursOptions, network: Network) -> None:
        super().__init__(options, network)
        rows = min(options.memory, max(network.images, 1))
        self.register_buffer("memory", torch.zeros(rows, self.encoder.width))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def remember(self, start: Start, rows: Rows) -> None:
        """The features of all rows, or of so many drawn ones."""
        h = start.features(sample(rows, len(self.memory), start.seed))
        self.memory[: len(h)] = h.to(self.memory)
        self.count.fill_(len(h))

    def scorer(self) -> nn.Module:
        """Mean distance to the nearest neighbours."""
        # A scorer is tried before a resumed run has its memory back: one row of zeros.
        memory = self.memory[: max(int(self.count), 1)]
        return NeighboursScorer(self.encoder, memory, self.options.neighbours)


class NeighboursScorer(nn.Module):
    """Images -> mean distance to the nearest of the features in memory (M, W)."""

    memory: Tensor

    def __init__(self, encoder: Encoder, memory: Tensor, neighbours: int) -> None:
        super().__init__()
        self.encoder, self.neighbours = encoder, neighbours
        self.register_buffer("memory", memory)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """`score` (B,), and the features `h`."""
        h = self.encoder(images)
        return {"score": knn_score(h, self.memory, self.neighbours).to(h.device), "h": h}


class Linear(Frozen):
    """Logistic regression of known abnormal against normal images, classes balanced.

    Features of plain and mirror images are standardised by the mean and deviation of all of them,
    fitted by scikit-learn on rank 0, and the standardisation is folded into the linear layer.
    """

    Options = LogisticOptions
    score_name = "logit of the classifier"
    options: LogisticOptions
    weight: Tensor
    bias: Tensor

    def __init__(self, options: LogisticOptions, network: Network) -> None:
        super().__init__(options, network)
        self.register_buffer("weight", torch.zeros(self.encoder.width))
        self.register_buffer("bias", torch.zeros(()))

    def check(self, labels: Tensor) -> None:
        """Refuse a training set without a known abnormal image."""
        super().check(labels)
        if not (labels == KNOWN_ABNORMAL).any():
            raise ValueError(
                f"method is {self.options.method!r}, but no training image is known to be "
                "abnormal; allowed: split.known_abnormal above 0"
            )

    def remember(self, start: Start, rows: Rows) -> None:
        """Fit the linear layer."""
        abnormal = start.rows[start.labels.numpy()[start.rows] == KNOWN_ABNORMAL]
        normal, known = (self.both_views(start, one) for one in (rows, abnormal))
        inverse = self.options.inverse_regularisation
        weight, bias = start.alone(lambda: fit_logistic(normal, known, inverse))
        self.weight.copy_(weight)
        self.bias.copy_(bias)

    def scorer(self) -> nn.Module:
        """The logit that an image is abnormal."""
        return LinearScorer(self.encoder, self.weight, self.bias)


def fit_logistic(normal: Tensor, abnormal: Tensor, inverse: float) -> tuple[Tensor, Tensor]:
    """Weight (W,) and bias of a logit of features as they are, float64.

    Args:
        normal: features (N, W), float64.
        abnormal: features (M, W), float64.
        inverse: of the regularisation of standardised features.
    """
    from sklearn.linear_model import LogisticRegression

    features = torch.cat([normal, abnormal])
    mean, deviation = standardisation(features)
    labels = torch.arange(len(features)) >= len(normal)
    model = LogisticRegression(C=inverse, class_weight="balanced", max_iter=10_000, tol=1e-8)
    model.fit(((features - mean) / deviation).numpy(), labels.numpy())
    weight = torch.from_numpy(model.coef_[0]) / deviation
    return weight, float(model.intercept_[0]) - weight @ mean


def standardisation(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population deviation (W,) of features (N, W); 1 where nothing varies."""
    deviation = features.std(0, correction=0)
    return features.mean(0), torch.where(deviation > 0, deviation, torch.ones_like(deviation))


class LinearScorer(nn.Module):
    """Images -> logit of a linear layer on their features."""

    weight: Tensor
    bias: Tensor

    def __init__(self, encoder: Encoder, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """`score` (B,), and the features `h`."""
        h = self.encoder(images)
        return {"score": h.to(self.weight) @ self.weight + self.bias, "h": h}


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


def fit_gaussian(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (W,), and R (W, W) with R R' the precision of features (N, W) as they are, float64."""
    mean, deviation = standardisation(features)
    _, root = statistics((features - mean) / deviation)
    return mean, root / deviation[:, None]


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


TASKS = {"knn": Neighbours, "logistic": Linear, "mahalanobis": Mahalanobis}
IMAGENET: dict[str, Any] = {"model.input_norm": "imagenet", "model.batch_norm": "affine"}
_BOTH = "Needs model.weights; the encoder is not trained. Features of plain and mirror images, "
SYSTEMS = {
    "frozen-knn": System(
        "k-NN on ImageNet features",
        pretext="imagenet",
        finetune="knn",
        changes=IMAGENET,
        note="Needs model.weights; nothing is trained. Mean distance to 100 training images.",
        extra=True,
    ),
    "frozen-logistic": System(
        "Logistic regression on ImageNet features",
        pretext="imagenet",
        finetune="logistic",
        changes=IMAGENET,
        note=_BOTH + "standardised; scikit-learn with C 0.01 and balanced classes.",
        extra=True,
    ),
    "frozen-mahalanobis": System(
        "Mahalanobis distance on ImageNet features",
        pretext="imagenet",
        finetune="mahalanobis",
        changes=IMAGENET,
        note=_BOTH + "standardised; covariance of Ledoit and Wolf. No abnormal label is used.",
        extra=True,
    ),
}
