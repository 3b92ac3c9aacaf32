"""DROCC, DROCC-OE and DROCC-LF: a classifier of images against their own worst perturbations.

Goyal et al., "DROCC: Deep Robust One-Class Classification", ICML 2020, arXiv:2002.12718.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from selftaught import distributed
from selftaught.data.augment import finetune_augment
from selftaught.errors import InputError, require
from selftaught.methods import noise
from selftaught.methods.begin import STATISTICS_IMAGES, sample, take_encoder
from selftaught.methods.perturbation import (
    Worst,
    masked_deviation,
    running_statistics,
    search,
)
from selftaught.methods.task import Options, Start, System, Task
from selftaught.models.heads import Embedder
from selftaught.models.network import Network
from selftaught.semi_labels import KNOWN_ABNORMAL


@dataclass(frozen=True, kw_only=True)
class DroccOptions(Options):
    """A logit that tells images from perturbations of them.

    Args:
        form: one_class learns from images not known to be abnormal alone; oe from known abnormal
            ones too; lf measures perturbations by how much each pixel moves the logit besides.
        radius: norm of the smallest perturbation; 0 = half the standard deviation of the training
            pixels inside their masks times the root of the image's pixels inside its mask.
        gamma: norm of the largest perturbation, in radii.
        mu: weight of perturbed images.
        search_steps: steps of a search for the worst perturbation; each costs a forward and a
            backward pass.
        search_rate: norm of such a step; 0 = a fifth of the radius.
        warmup_epochs: first epochs, in which nothing is perturbed.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # A step of training then costs 4.5 times that of spheres, on a CPU.
        "quick": {"epochs": 40, "lr": 1e-4, "milestones": [28, 36], "search_steps": 3},
        "paper": {
            "augment": asdict(finetune_augment("paper")),
            "mu": 0.25,
            "search_steps": 5,
        },
    }

    epochs: int = 65
    lr: float = 1e-3
    milestones: list[int] = field(default_factory=lambda: [25, 50])
    form: Literal["one_class", "oe", "lf"] = "lf"
    radius: float = 0.0
    gamma: float = 2.0
    mu: float = 0.5
    search_steps: int = 10
    search_rate: float = 0.0
    warmup_epochs: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        forms = ("one_class", "oe", "lf")
        require("form", self.form, ", ".join(forms), self.form in forms)
        for name, least in (("radius", 0), ("gamma", 1), ("mu", 0), ("search_rate", 0)):
            value = getattr(self, name)
            require(name, value, f"{least} or more", least <= value < math.inf)
        for name in ("search_steps", "warmup_epochs"):
            require(name, getattr(self, name), "0 or more", getattr(self, name) >= 0)


class Drocc(Task):
    """Binary cross-entropy of images, and of the worst perturbations of those taken as normal.

    The loss is a mean over the batch's images, in which one that does not count has weight 0: so
    it is the same over any number of ranks and micro-batches, whatever labels each of them holds.
    Passes of the network have the engine's precision; norms, perturbations and losses are float32.

    Attributes:
        deviation: standard deviation of the training pixels inside their masks.
    """

    Options, masks = DroccOptions, True
    score_name = "logit of abnormal"
    options: DroccOptions
    deviation: Tensor

    def __init__(self, options: DroccOptions, network: Network) -> None:
        super().__init__(options, network)
        self.embedder = replace(network, head=(1,)).embedder(bias=False)
        self.register_buffer("deviation", torch.zeros(()))

    def begin(self, start: Start) -> None:
        """The encoder of the stage before, and the deviation of some training images' pixels."""
        take_encoder(self.options.method, start, self.embedder.encoder)
        chosen = sample(start.rows, STATISTICS_IMAGES, start.seed)
        batches = start.batches(chosen)
        self.deviation.fill_(masked_deviation((b["views"], b["masks"]) for b in batches))
        if not self.deviation > 0 and not self.options.radius:
            raise InputError(
                f"drocc: the pixels of {len(chosen)} training images have the standard deviation "
                f"{float(self.deviation):g} inside their masks; allowed: images with contrast, or "
                "finetune.radius above 0"
            )
        start.note(f"standard deviation of pixels inside masks: {float(self.deviation):.4g}")

    def forward(self, batch: dict[str, Any], player: str = "all") -> dict[str, Tensor]:
        """The loss; cross-entropies, and norms of the perturbations, are means over the batch."""
        images, known = batch["views"][:, 0], batch["semi_label"] == KNOWN_ABNORMAL
        counted = ~known if self.options.form == "one_class" else torch.ones_like(known)
        if batch["epoch"] < self.options.warmup_epochs:
            loss = cross_entropy(logit(self.embedder, images), known, counted)
            return {"loss": loss, "bce": loss.detach()}
        worst = self._worst(batch)
        # One pass over both: the statistics of two would tell the network which one it sees.
        logits = logit(self.embedder, torch.cat([images, worst.images]))
        clean, perturbed = logits.chunk(2)
        bce = cross_entropy(clean, known, counted)
        adversarial = cross_entropy(perturbed, torch.ones_like(known), ~known)
        norms = (worst.images - images).flatten(1).norm(dim=1)
        return {
            "loss": bce + self.options.mu * adversarial,
            "bce": bce.detach(),
            "bce_perturbed": adversarial.detach(),
            "bce_before_search": softplus(-worst.before).mean(),
            "bce_after_search": softplus(-worst.after).mean(),
            "perturbation_mean": norms.mean(),
            "perturbation_min": distributed.gather(norms).min(),
        }

    def _worst(self, batch: dict[str, Any]) -> Worst:
        images, masks, options = batch["views"][:, 0], batch["masks"][:, 0], self.options
        ids, shape = batch["ids"], images.shape[1:]
        drawn = noise.normal(self.network.seed, batch["epoch"], ids, shape)
        drawn = drawn.to(images, non_blocking=True)
        if options.radius:
            radius = images.new_full((len(images),), options.radius)
        else:
            radius = 0.5 * self.deviation * masks.flatten(1).sum(1).sqrt()
        rate = torch.full_like(radius, options.search_rate) if options.search_rate else radius / 5
        with running_statistics(self.embedder):
            return search(
                lambda x: logit(self.embedder, x),
                images,
                masks,
                drawn,
                radius=radius,
                gamma=options.gamma,
                rate=rate,
                steps=options.search_steps,
                limits=options.augment.input_range,
                weighted=options.form == "lf",
            )

    def check_epoch(self, epoch: int) -> list[str]:
        """A run that ends before its warm-up does."""
        warmup, epochs = self.options.warmup_epochs, self.options.epochs
        if epoch == 0 and warmup >= epochs:
            return [
                f"warmup_epochs is {warmup} of {epochs} epochs: no perturbation is searched for, "
                "which leaves a plain classifier of known abnormal images"
            ]
        return []

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """H of images twice: what the logit is read from is all there is to embed them."""
        h = self.embedder.encoder(images)
        return h, h

    def backbone(self) -> nn.Module:
        """The encoder."""
        return self.embedder.encoder

    def scorer(self) -> nn.Module:
        """The logit of abnormal."""
        return Logit(self.embedder)


class Logit(nn.Module):
    """Images -> logit of abnormal.

    Args:
        embedder: encoder and a head of width 1.
    """

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self.embedder = embedder

    def forward(self, images: Tensor, masks: Tensor | None = None) -> dict[str, Tensor]:
        """`score` (B,) float32 and the features `h`; images are masked already."""
        h = self.embedder.encoder(images)
        return {"score": self.embedder.head(h)[:, 0].float(), "h": h}


def logit(embedder: Embedder, images: Tensor) -> Tensor:
    """Logit of abnormal (B,) of images (B, 1, S, S), its head in the weights' own precision."""
    h = embedder.encoder(images)
    with torch.autocast(h.device.type, enabled=False):
        return embedder.head(h.to(next(embedder.head.parameters()).dtype))[:, 0]


def cross_entropy(logits: Tensor, abnormal: Tensor, counted: Tensor) -> Tensor:
    """Binary cross-entropy, summed over the rows that count and divided by all.

    Args:
        logits: (B,) of abnormal.
        abnormal: (B,) booleans.
        counted: (B,) booleans, rows that are not left out.
    """
    target, weight = abnormal.to(logits), counted.to(logits)
    return binary_cross_entropy_with_logits(logits, target, weight)


TASKS = {"drocc": Drocc}
CORRECTED = (
    "The published perturbations had norm 2 whatever the image size and covered the black "
    "background; here they lie inside the mask, are projected exactly, and their norm follows the "
    "pixels' deviation. A search takes 10 steps, in preset eq2-quick 3: at 64 px a run then costs "
    "about three times Ours."
)
SYSTEMS = {
    "drocc-lf": System("Goyal et al. (DROCC-LF)", pretext="none", finetune="drocc", note=CORRECTED),
    "drocc": System(
        "DROCC",
        pretext="none",
        finetune="drocc",
        changes={"finetune.form": "one_class"},
        note="Learns from images not known to be abnormal alone. " + CORRECTED,
        extra=True,
    ),
    "drocc-oe": System(
        "DROCC-OE",
        pretext="none",
        finetune="drocc",
        changes={"finetune.form": "oe"},
        note="Measures perturbations by their plain norm. " + CORRECTED,
        extra=True,
    ),
}
