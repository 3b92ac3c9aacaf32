"""Supervised classification of the encoder's features: known abnormal images against others."""

from dataclasses import dataclass, field
from typing import Literal

from selftaught.methods.classifier import Classifier, ClassifierOptions
from selftaught.methods.task import System


@dataclass(frozen=True, kw_only=True)
class SupervisedOptions(ClassifierOptions):
    """Supervised classification by one linear layer on the encoder's features."""

    epochs: int = 100
    milestones: list[int] = field(default_factory=lambda: [70, 90])
    features: Literal["h", "z"] = "h"


class Supervised(Classifier):
    """Classification of the encoder's features, without a head."""

    Options = SupervisedOptions


TASKS = {"supervised": Supervised}

_UNKNOWN_RECIPE = (
    "The paper does not give the recipe. Ours: random initial weights, binary cross-entropy with "
    "the abnormal images weighted by n0/n1, 100 epochs; "
)
SYSTEMS = {
    "resnet50": System(
        "Supervised ResNet-50",
        pretext="none",
        finetune="supervised",
        changes={"model.architecture": "resnet50"},
        note=_UNKNOWN_RECIPE
        + "reading (a): every image not known to be abnormal counts as normal.",
    ),
    "resnet50-known": System(
        "Supervised ResNet-50, known labels only",
        pretext="none",
        finetune="supervised",
        changes={"model.architecture": "resnet50", "finetune.normals": "known"},
        note=_UNKNOWN_RECIPE + "reading (b): unknown images weigh nothing.",
        extra=True,
    ),
}
