"""Known abnormal images against the others: numbers, weights, losses and probabilities of both.

Cross-entropy; the hypersphere classifier (Ruff et al. 2020, arXiv:2006.00339; log form of FCDD,
Liznerski et al. 2021, arXiv:2007.01760); DevNet (Pang et al. 2019, arXiv:1911.08623).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from selftaught.data.plan import known_in_batch
from selftaught.methods import noise
from selftaught.methods.task import Start
from selftaught.semi_labels import KNOWN_ABNORMAL, KNOWN_NORMAL, UNKNOWN

REFERENCES = 5000  # DevNet's normal reference scores
CONFIDENCE = 5.0  # standard deviations that DevNet wants abnormal images away from them
LEAST_RADIUS = 1e-6  # the logarithm of a hypersphere's loss has a pole at 0


def kinds(labels: Tensor, normals: str) -> tuple[int, int]:
    """How many training images count as abnormal, and how many as normal."""
    abnormal = int((labels == KNOWN_ABNORMAL).sum())
    known = int((labels == KNOWN_NORMAL).sum())
    return abnormal, known if normals == "known" else len(labels) - abnormal


def kind_weights(labels: Tensor, normals: str, balance: str) -> Tensor:
    """Weights of known abnormal, unknown and known normal images.

    A mean over all images with these weights is, over the training set, the mean over those that
    count, an abnormal one counted n0/n1 times with balance weight.

    Args:
        labels: (N,) -1, 0, +1 of the training images, with some of each kind that counts.
        normals: as in the options.
        balance: as in the options.

    Returns:
        (3,) float64, by semi-label from -1 on.
    """
    abnormal, normal = kinds(labels, normals)
    each = len(labels) / (abnormal + normal)
    weights = {KNOWN_ABNORMAL: each, UNKNOWN: each, KNOWN_NORMAL: each}
    if normals == "known":
        weights[UNKNOWN] = 0.0
    if balance == "weight":
        weights[KNOWN_ABNORMAL] *= normal / abnormal
    return torch.tensor([weights[label] for label in (-1, 0, 1)], dtype=torch.float64)


def odds(start: Start, share: float) -> Tensor:
    """Odds (2,) of known abnormal images: in the training set, and in batches of that share."""
    abnormal, normal = kinds(start.labels[torch.from_numpy(start.rows)], "all")
    known = known_in_batch(start.batch_size, share)
    drawn = known / (start.batch_size - known)
    return torch.tensor([abnormal / normal, drawn], dtype=torch.float64)


class Probability(nn.Module):
    """A scorer of logits, and `probability` (B,): of abnormality, as often as in the training set.

    A logit that was learnt where abnormal images count for more than they are in number is moved
    by the log odds in the training set less those in the loss.

    Args:
        scorer: images -> `score` (B,) and more.
        shift: 0-d, the difference of log odds.
    """

    shift: Tensor

    def __init__(self, scorer: nn.Module, shift: Tensor) -> None:
        super().__init__()
        self.scorer = scorer
        self.register_buffer("shift", shift)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """What the scorer gives, and `probability`."""
        outputs = self.scorer(images)
        return {**outputs, "probability": (outputs["score"] + self.shift).sigmoid()}


def bce(logits: Tensor, abnormal: Tensor) -> Tensor:
    """Cross-entropy (B,) of logits (B,) that an image is abnormal (B,)."""
    return functional.binary_cross_entropy_with_logits(
        logits, abnormal.to(logits.dtype), reduction="none"
    )


def radius(z: Tensor) -> Tensor:
    """Pseudo-Huber distance sqrt(|z|^2 + 1) - 1 (B,) of z (B, D) from the origin."""
    squared = z.square().sum(1)
    return squared / ((squared + 1).sqrt() + 1)  # the difference would lose all digits near 0


def hypersphere(distance: Tensor, abnormal: Tensor) -> Tensor:
    """Loss (B,) of the hypersphere classifier at distances (B,): h, or -log(1 - exp(-h))."""
    far = -(-torch.expm1(-distance.clamp(min=LEAST_RADIUS))).log()
    return torch.where(abnormal, far, distance)


def deviation(scores: Tensor, abnormal: Tensor, reference: tuple[float, float]) -> Tensor:
    """Loss (B,) of DevNet: |d|, or max(0, 5 - d), of the deviation d from reference scores.

    Args:
        scores: (B,).
        abnormal: (B,) booleans.
        reference: mean and standard deviation of the reference scores.
    """
    deviations = (scores - reference[0]) / reference[1]
    return torch.where(abnormal, (CONFIDENCE - deviations).clamp(min=0), deviations.abs())


def references(seed: int, step: int) -> tuple[float, float]:
    """Mean and standard deviation of a step's 5,000 standard normal reference scores."""
    drawn = noise.normal(seed, step, [0], (REFERENCES,)).double()
    return float(drawn.mean()), float(drawn.std())
