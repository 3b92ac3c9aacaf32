"""PaDiM: a Gaussian of patches at each place of an image (Defard et al. 2020, 2011.08785)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from selftaught.errors import require
from selftaught.methods.frozen import IMAGENET, FrozenOptions
from selftaught.methods.patches import OfPatches, Patches, worst_place
from selftaught.methods.task import Rows, Start, System
from selftaught.models.network import Network

COVERED = 0.1  # of the images at the best covered place: with fewer a Gaussian is not known
EPSILON = 0.01  # added to the variances


@dataclass(frozen=True, kw_only=True)
class PadimOptions(FrozenOptions):
    """A Gaussian at each place.

    Args:
        channels: of the features, drawn; all where there are fewer.
    """

    channels: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        require("channels", self.channels, "1 or more", self.channels >= 1)


class Padim(OfPatches):
    """Largest Mahalanobis distance to a Gaussian at each place (Defard et al. 2020, 2011.08785).

    Places that few masks cover have none: a place counts from a tenth of the images at the place
    that most cover.
    """

    Options = PadimOptions
    score_name = "largest Mahalanobis distance of a patch"
    options: PadimOptions
    channels: Tensor
    mean: Tensor
    whitening: Tensor
    active: Tensor

    def __init__(self, options: PadimOptions, network: Network) -> None:
        super().__init__(options, network)
        patches = self.patches()
        places, width = patches.side**2, min(options.channels, patches.width)
        self.register_buffer("channels", torch.zeros(width, dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(places, width))
        self.register_buffer("whitening", torch.zeros(places, width, width))
        self.register_buffer("active", torch.zeros(places, dtype=torch.bool))

    def remember(self, start: Start, rows: Rows) -> None:
        """Mean and covariance at each place, in float64, of the images whose mask covers it."""
        generator = torch.Generator().manual_seed(start.seed)
        drawn = torch.randperm(self.patches().width, generator=generator)[: len(self.channels)]
        self.channels.copy_(drawn.sort().values)
        mean = torch.zeros_like(self.mean, dtype=torch.float64)
        products = torch.zeros_like(self.whitening, dtype=torch.float64)
        counts = torch.zeros_like(mean[:, 0])
        for features, inside, _ in self.seen(start, rows):
            x, inside = features[..., self.channels].double(), inside.double()
            covered = x * inside[..., None]
            counts += inside.sum(0)
            mean += covered.sum(0)
            products += torch.einsum("bpc,bpd->pcd", covered, x)
        known = counts.clamp(min=1)
        mean /= known[:, None]
        products -= counts[:, None, None] * mean[:, :, None] * mean[:, None]
        covariance = products / (known - 1).clamp(min=1)[:, None, None]
        unit = torch.eye(mean.shape[1], dtype=mean.dtype, device=mean.device)
        factor = torch.linalg.cholesky(covariance + EPSILON * unit)
        whitening = torch.linalg.solve_triangular(factor, unit.expand_as(factor), upper=False)
        self.mean.copy_(mean)
        self.whitening.copy_(whitening)
        self.active.copy_(counts >= COVERED * counts.max())

    def scorer(self) -> nn.Module:
        """The largest distance of a place inside the mask."""
        return PadimScorer(self.patches(), self.channels, self.mean, self.whitening, self.active)


class PadimScorer(nn.Module):
    """Images and masks -> largest Mahalanobis distance; arguments are `Padim`'s buffers."""

    channels: Tensor
    mean: Tensor
    whitening: Tensor
    active: Tensor

    def __init__(
        self, patches: Patches, channels: Tensor, mean: Tensor, whitening: Tensor, active: Tensor
    ) -> None:
        super().__init__()
        self.patches = patches
        self.register_buffer("channels", channels)
        self.register_buffer("mean", mean)
        self.register_buffer("whitening", whitening)
        self.register_buffer("active", active)

    def forward(self, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """`score` (B,), and the features `h`; all known places count where none is inside."""
        features, h = self.patches(images)
        centred = features[..., self.channels].to(self.mean.dtype) - self.mean
        distances = torch.einsum("pcd,bpd->bpc", self.whitening, centred).norm(dim=2)
        inside = self.patches.inside(masks) & self.active
        return {"score": worst_place(distances, inside, self.active)[0], "h": h}


TASKS = {"padim": Padim}
SYSTEMS = {
    "padim": System(
        "PaDiM on ImageNet features",
        pretext="imagenet",
        finetune="padim",
        changes=IMAGENET,
        note=(
            "Needs model.weights; nothing is trained. Layers 2 and 3 in place of 1 to 3, and only "
            "places inside the masks; it takes films for aligned, which they are not."
        ),
        extra=True,
    ),
}
