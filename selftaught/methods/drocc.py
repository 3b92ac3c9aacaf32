"""DROCC, DROCC-OE and DROCC-LF: a classifier of images against their own worst perturbations.

Goyal et al., "DROCC: Deep Robust One-Class Classification", ICML 2020, arXiv:2002.12718.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from selftaught.errors import InputError, require
from selftaught.methods import noise
from selftaught.methods.begin import take_encoder
from selftaught.methods.task import Options, Start, System, Task
from selftaught.models.heads import Embedder
from selftaught.models.network import Network
from selftaught.semi_labels import KNOWN_ABNORMAL

STATISTICS_IMAGES = 512
HALVINGS = 60  # more than the digits of a float64
LEAST_SLOPE = 1e-12


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
        "quick": {
            "epochs": 40,
            "lr": 1e-4,
            "milestones": [28, 36],
            "search_steps": 3,
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
        self.embedder = dataclasses.replace(network, head=(1,)).embedder(bias=False)
        self.register_buffer("deviation", torch.zeros(()))

    def begin(self, start: Start) -> None:
        """The encoder of the stage before, and the deviation of some training images' pixels."""
        take_encoder(self.options.method, start, self.embedder.encoder)
        generator = torch.Generator().manual_seed(start.seed)
        chosen = torch.randperm(len(start.rows), generator=generator)[:STATISTICS_IMAGES]
        batches = start.batches(start.rows[chosen.numpy()])
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
            "perturbation_min": norms.min(),
        }

    def _worst(self, batch: dict[str, Any]) -> "Worst":
        images, masks, options = batch["views"][:, 0], batch["masks"][:, 0], self.options
        ids, shape = batch["ids"], images.shape[1:]
        drawn = noise.normal(self.network.seed, batch["epoch"], ids, shape).to(images)
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


TASKS = {"drocc": Drocc}
_NOTE = (
    "The published run's perturbations had norm 2 whatever the image size and covered the empty "
    "background; here they are searched for inside the mask only and projected exactly, and "
    "their radius follows the pixels' own deviation. "
)
SYSTEMS = {
    "drocc-lf": System(
        "Goyal et al. (DROCC-LF)",
        pretext="none",
        finetune="drocc",
        changes={"finetune.form": "lf"},
        note=_NOTE,
    ),
    "drocc": System(
        "DROCC",
        pretext="none",
        finetune="drocc",
        changes={"finetune.form": "one_class"},
        extra=True,
    ),
    "drocc-oe": System(
        "DROCC-OE", pretext="none", finetune="drocc", changes={"finetune.form": "oe"}, extra=True
    ),
}
