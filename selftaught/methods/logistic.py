"""Logistic regression on a frozen encoder's features: what every method has to beat."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from selftaught.errors import require
from selftaught.methods.frozen import (
    BOTH_VIEWS,
    IMAGENET,
    Frozen,
    FrozenOptions,
    standardisation,
)
from selftaught.methods.task import Rows, Start, System
from selftaught.models.encoder import Encoder
from selftaught.models.network import Network
from selftaught.semi_labels import KNOWN_ABNORMAL


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


TASKS = {"logistic": Linear}
SYSTEMS = {
    "frozen-logistic": System(
        "Logistic regression on ImageNet features",
        pretext="imagenet",
        finetune="logistic",
        changes=IMAGENET,
        note=BOTH_VIEWS + "standardised; scikit-learn with C 0.01 and balanced classes.",
        extra=True,
    ),
}
