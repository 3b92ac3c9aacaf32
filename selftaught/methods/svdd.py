"""One-class training without labels: images close to one centre, or inside a sphere around it.

Ruff et al. 2018, "Deep One-Class Classification", ICML.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from selftaught import distributed
from selftaught.data.augment import finetune_augment
from selftaught.errors import require
from selftaught.losses.means import per_counted
from selftaught.methods.begin import away_from_zero, normal_rows, take_encoder
from selftaught.methods.task import Options, Start, System, Task
from selftaught.models.heads import Embedder
from selftaught.models.network import Network
from selftaught.semi_labels import KNOWN_ABNORMAL

RING = 1024  # distances that the radius is a quantile of


@dataclass(frozen=True, kw_only=True)
class SvddOptions(Options):
    """Deep SVDD on images that are not known to be abnormal (Ruff et al. 2018).

    Args:
        boundary: hard = distances to the centre are minimised; soft = a sphere, and what lies
            outside of it.
        nu: with a soft boundary, the largest share of images outside.
        warmup_epochs: with a soft boundary, epochs before the sphere has a radius.
        center_epsilon: centre coordinates closer to 0 than this are pushed to +-this; 0 stays.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {"epochs": 40, "milestones": [28, 36], "warmup_epochs": 3},
        "paper": {"augment": asdict(finetune_augment("paper"))},
    }

    epochs: int = 150
    milestones: list[int] = field(default_factory=lambda: [90, 140])
    boundary: Literal["hard", "soft"] = "hard"
    nu: float = 0.05
    warmup_epochs: int = 10
    center_epsilon: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        boundary, warmup = self.boundary, self.warmup_epochs
        require("boundary", boundary, "hard, soft", boundary in ("hard", "soft"))
        require("nu", self.nu, "above 0, up to 1", 0 < self.nu <= 1)
        fine = 0 <= warmup and (boundary == "hard" or warmup < self.epochs)
        allowed = f"0 to {self.epochs - 1}, so that the soft boundary gets a radius in epochs"
        require("warmup_epochs", warmup, allowed, fine)
        epsilon = self.center_epsilon
        require("center_epsilon", epsilon, "0 or more", 0 <= epsilon < math.inf)


class Svdd(Task):
    """Squared distance to a centre that never moves, of images not known to be abnormal.

    The head has no biases, and batch norms keep the gains and shifts that they come with: either
    could map all images to the centre. Known abnormal images pass through the network, since batch
    statistics need the same rows on all ranks, but have no loss.
    """

    Options, whole_batch = SvddOptions, True
    score_name = "squared distance to the centre, less the squared radius"
    copied = ("radius2", "ring")
    options: SvddOptions
    center: Tensor
    radius2: Tensor
    ring: Tensor
    written: Tensor
    epoch: Tensor

    def __init__(self, options: SvddOptions, network: Network) -> None:
        super().__init__(options, network)
        self.embedder = network.embedder(bias=False)
        for module in self.embedder.modules():
            if isinstance(module, _BatchNorm):
                module.requires_grad_(False)
        self.soft = options.boundary == "soft"
        self.register_buffer("center", torch.zeros(self.embedder.head.widths[-1]))
        self.register_buffer("radius2", torch.zeros(()))
        # Squared distances of the last images of all ranks; -1 = none.
        self.register_buffer("ring", torch.full((RING,), -1.0))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))

    def begin(self, start: Start) -> None:
        """The encoder of the stage before under a fresh head, and the images' mean as centre."""
        take_encoder(self.options.method, start, self.embedder.encoder)
        mean = start.features(normal_rows(start)).double().mean(0)
        self.center.copy_(away_from_zero(mean, self.options.center_epsilon))

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        """The radius of the step: from the distances of the steps before, after the warm-up."""
        if self.soft:
            late = self.epoch >= self.options.warmup_epochs
            radius2 = radius_squared(self.ring, self.options.nu)
            # Without a distance there is no radius yet.
            self.radius2.copy_(torch.where(late & (radius2 >= 0), radius2, self.radius2))

    def forward(self, batch: dict[str, Any], player: str = "all") -> dict[str, Tensor]:
        """Loss of a batch; remembers its distances while training."""
        squared = squared_distance(self.embedder(batch["views"][:, 0])[1], self.center)
        normal = batch["semi_label"] != KNOWN_ABNORMAL
        if self.soft and self.training:
            self._remember(squared.detach().where(normal, -1.0))
        losses = soft_losses(squared, self.radius2, self.options.nu) if self.soft else squared
        return {"loss": losses.where(normal, 0.0).sum() * per_counted(normal.to(losses.dtype))}

    def _remember(self, squared: Tensor) -> None:
        everyone = distributed.gather(squared)[-RING:]
        place = torch.arange(len(everyone), device=everyone.device)
        self.ring[(self.written + place) % RING] = everyone.to(self.ring.dtype)
        self.written.add_(len(everyone))

    def close_epoch(self) -> dict[str, float]:
        """Count the epoch; return what the sphere is."""
        self.epoch.add_(1)
        if not self.soft:
            return {}
        held = self.ring[self.ring >= 0]
        outside = float((held > self.radius2).double().mean()) if len(held) else 0.0
        return {"radius": float(self.radius2.sqrt()), "outside": outside}

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """H and z of images."""
        return self.embedder(images)

    def backbone(self) -> nn.Module:
        """The encoder."""
        return self.embedder.encoder

    def scorer(self) -> nn.Module:
        """Squared distance to the centre, less the squared radius."""
        return Beyond(self.embedder, self.center, self.radius2)


class Beyond(nn.Module):
    """Images -> squared distance to the centre, less a squared radius, which may be 0.

    Args:
        embedder: encoder and head.
        center: (D,).
        radius2: 0-d.
    """

    center: Tensor
    radius2: Tensor

    def __init__(self, embedder: Embedder, center: Tensor, radius2: Tensor) -> None:
        super().__init__()
        self.embedder = embedder
        self.register_buffer("center", center)
        self.register_buffer("radius2", radius2)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """`score` (B,), and the features `h` and `z`."""
        h, z = self.embedder(images)
        return {"score": squared_distance(z, self.center) - self.radius2, "h": h, "z": z}


def squared_distance(z: Tensor, center: Tensor) -> Tensor:
    """(B,) squared Euclidean distances of z (B, D) to a centre (D,), in float32 or float64."""
    return (z.to(torch.promote_types(z.dtype, torch.float32)) - center).square().sum(1)


def soft_losses(squared: Tensor, radius2: Tensor, nu: float) -> Tensor:
    """R^2 + max(0, d^2 - R^2) / nu of each image (Ruff et al. 2018, Eq. 3).

    Their mean is smallest where R^2 is the (1 - nu) quantile of d^2. Only the distances are moved
    by its gradient; the radius follows as that quantile.

    Args:
        squared: (B,) squared distances d^2.
        radius2: 0-d, R^2.
        nu: above 0, up to 1.
    """
    return radius2 + (squared - radius2).clamp(min=0) / nu


def radius_squared(squared: Tensor, nu: float) -> Tensor:
    """The (1 - nu) quantile of squared distances: the least with a share of nu or less beyond it.

    Args:
        squared: (N,) squared distances; negative = none.
        nu: above 0, up to 1.

    Returns:
        0-d; NaN where there is no distance.
    """
    held = squared.where(squared >= 0, torch.nan)
    return held.nanquantile(1 - nu, interpolation="higher")


TASKS = {"svdd": Svdd}
_NOTE = "Unsupervised: known abnormal images have no loss. The head has no biases, as published."
SYSTEMS = {
    "svdd-hard": System(
        "Deep SVDD, hard boundary",
        pretext="ae",
        finetune="svdd",
        note=_NOTE,
        extra=True,
    ),
    "svdd-soft": System(
        "Deep SVDD, soft boundary",
        pretext="ae",
        finetune="svdd",
        changes={"finetune.boundary": "soft"},
        note=f"{_NOTE} The radius is the quantile of the last 1,024 distances, of every step.",
        extra=True,
    ),
}
