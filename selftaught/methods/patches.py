"""PaDiM and PatchCore: memories of patches, features of a frozen encoder at places of an image."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, interpolate

from selftaught.errors import InputError, require
from selftaught.losses import nearest_center
from selftaught.methods import noise
from selftaught.methods.begin import sample
from selftaught.methods.features import IMAGENET, Frozen, FrozenOptions
from selftaught.methods.task import Rows, Start, System
from selftaught.models.encoder import Encoder
from selftaught.models.network import Network

PROJECTED = 128  # dimensions in which a coreset is chosen; distances keep to some tenth there
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


@dataclass(frozen=True, kw_only=True)
class PatchcoreOptions(FrozenOptions):
    """A coreset of patches.

    Args:
        patches: most patches that the coreset is chosen from; drawn evenly from the images.
        share: of them in the coreset.
        neighbours: in the coreset, by which the worst patch's distance is weighted; 1 = unweighted.
    """

    patches: int = 100_000
    share: float = 0.01
    neighbours: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        require("patches", self.patches, "1 or more", self.patches >= 1)
        require("share", self.share, "above 0, up to 1", 0 < self.share <= 1)
        require("neighbours", self.neighbours, "1 or more", self.neighbours >= 1)


class Patches(nn.Module):
    """Images -> features of places, from the second and third layers of an encoder.

    Each is the mean of 3x3 neighbours; the third layer's map is brought to the second's side.

    Args:
        encoder: stays where it is, in its mode.
        image_size: S.

    Attributes:
        side: s of the map.
        width: C, features of a place.
    """

    def __init__(self, encoder: Encoder, image_size: int) -> None:
        super().__init__()
        encoder.need_layers("of patches")
        self.encoder = encoder
        self.side = -(-image_size // (8 if encoder.config.stem == "imagenet" else 2))
        self.width = encoder.width // 4 + encoder.width // 2

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, s * s, C) of places, row by row, and the pooled ones (B, W)."""
        maps: list[Tensor] = []
        layers = dict(self.encoder.layers.named_children())
        hooks = [
            layers[name].register_forward_hook(lambda _layer, _inputs, made: maps.append(made))
            for name in ("layer2", "layer3")
        ]
        try:
            h = self.encoder.pooled(images)
        finally:
            for hook in hooks:
                hook.remove()
        two, three = (avg_pool2d(one, 3, 1, 1, count_include_pad=False) for one in maps)
        three = interpolate(three, two.shape[-2:], mode="bilinear", align_corners=False)
        joined = torch.cat([two, three], 1)
        kind = torch.promote_types(joined.dtype, torch.float32)
        return joined.flatten(2).transpose(1, 2).to(kind), h

    def inside(self, masks: Tensor) -> Tensor:
        """Places (B, s * s) of which the mask covers half or more, booleans."""
        return adaptive_avg_pool2d(masks, self.side).flatten(1) >= 0.5


class OfPatches(Frozen):
    """What is remembered of places inside the masks."""

    masks = True

    def frozen(self) -> None:
        """None is kept: patches are features of inner layers, not of the whole encoder."""

    def patches(self) -> Patches:
        """Features of places, by the task's own encoder."""
        return Patches(self.encoder, self.network.image_size)

    def seen(self, start: Start, rows: Rows) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Features (B, P, C) of places, which are inside (B, P), and ids (B,) of the rows.

        Raises:
            InputError: no place of any image is inside its mask.
        """
        patches, places = self.patches(), 0
        for batch in start.batches(rows):
            inside = patches.inside(batch["masks"][:, 0])
            places += int(inside.sum())
            yield patches(batch["views"][:, 0])[0], inside, batch["ids"]
        if not places:
            raise InputError(
                f"{self.options.method}: no training image's mask covers half of a patch of its "
                f"{patches.side} x {patches.side}; allowed: masks of larger parts, or "
                "data.mask none"
            )


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
        return {
            "score": _worst(distances, self.patches.inside(masks) & self.active, self.active)[0],
            "h": h,
        }


class Patchcore(OfPatches):
    """Distance of the worst patch to a coreset of patches (Roth et al. 2022, arXiv:2106.08265)."""

    Options = PatchcoreOptions
    score_name = "distance of the worst patch to its nearest"
    options: PatchcoreOptions
    memory: Tensor
    count: Tensor

    def __init__(self, options: PatchcoreOptions, network: Network) -> None:
        super().__init__(options, network)
        patches = self.patches()
        most = min(options.patches, max(network.images, 1) * patches.side**2)
        rows = math.ceil(options.share * most)
        self.register_buffer("memory", torch.zeros(rows, patches.width))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def remember(self, start: Start, rows: Rows) -> None:
        """A coreset of patches that are drawn evenly from the images."""
        most = self.options.patches
        rows = sample(rows, most, start.seed)
        each = min(most // len(rows), self.patches().side ** 2)
        drawn = []
        for features, inside, ids in self.seen(start, rows):
            chance = noise.uniform(start.seed, 0, ids, (inside.shape[1],)).to(inside.device)
            first = chance.masked_fill(~inside, 2.0).topk(each, largest=False)
            taken = features.gather(1, first.indices[..., None].expand(-1, -1, features.shape[2]))
            drawn.append(taken[first.values < 1])
        patches = torch.cat(drawn)
        generator = torch.Generator().manual_seed(start.seed)
        projection = torch.randn(patches.shape[1], PROJECTED, generator=generator).to(patches)
        size = math.ceil(self.options.share * len(patches))
        chosen = start.alone(lambda: coreset(patches @ projection, size))
        self.memory[: len(chosen)] = patches[chosen].to(self.memory)
        self.count.fill_(len(chosen))
        start.note(f"{len(chosen)} of {len(patches)} patches are in the coreset")

    def scorer(self) -> nn.Module:
        """The weighted distance of the worst patch inside the mask."""
        # A scorer is tried before a resumed run has its memory back: one row of zeros.
        memory = self.memory[: max(int(self.count), 1)]
        return PatchcoreScorer(self.patches(), memory, self.options.neighbours)


class PatchcoreScorer(nn.Module):
    """Images and masks -> weighted distance of the worst patch to its nearest in memory (M, C)."""

    memory: Tensor

    def __init__(self, patches: Patches, memory: Tensor, neighbours: int) -> None:
        super().__init__()
        self.patches, self.neighbours = patches, neighbours
        self.register_buffer("memory", memory)

    def forward(self, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """`score` (B,), and the features `h`; all places count where none is inside."""
        features, h = self.patches(images)
        squared, index = nearest_center(features.flatten(0, 1), self.memory, check_values=False)
        inside = self.patches.inside(masks)
        distances = squared.sqrt().view_as(inside)
        distance, worst = _worst(distances, inside, torch.ones_like(inside))
        rows = torch.arange(len(worst), device=worst.device)
        patch, nearest = features[rows, worst], index.view_as(inside)[rows, worst]
        return {"score": distance * self._weight(distance, patch, self.memory[nearest]), "h": h}

    def _weight(self, distance: Tensor, patch: Tensor, nearest: Tensor) -> Tensor:
        """1 - softmax of the distance among those to the nearest's neighbours (Eq. 7)."""
        count = min(self.neighbours, len(self.memory))
        if count < 2:
            return torch.ones_like(distance)
        exact = "donot_use_mm_for_euclid_dist"
        around = torch.cdist(nearest, self.memory, compute_mode=exact).topk(count, largest=False)
        others = (patch[:, None] - self.memory[around.indices]).norm(dim=2)
        return -torch.expm1(distance - others.logsumexp(1))


def coreset(points: Tensor, size: int) -> Tensor:
    """Rows (size',) of `points` (N, D) that leave no other far away: greedy k-centre.

    The first is the farthest from the mean, each next one the farthest from those chosen; ends
    early where all others are equal to one chosen.
    """
    chosen: list[int] = []
    nearest = (points - points.mean(0)).square().sum(1)
    for number in range(min(size, len(points))):
        row = int(nearest.argmax())
        if number and not nearest[row] > 0:
            break
        chosen.append(row)
        squared = (points - points[row]).square().sum(1)
        nearest = torch.minimum(nearest, squared) if number else squared
    return torch.tensor(chosen)


def _worst(distances: Tensor, inside: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """The largest distance (B,) of those inside, and its place; of all known where none is."""
    counted = torch.where(inside.any(1, keepdim=True), inside, known)
    worst = distances.masked_fill(~counted, -math.inf).max(1)
    return worst.values, worst.indices


TASKS = {"padim": Padim, "patchcore": Patchcore}
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
    "patchcore": System(
        "PatchCore on ImageNet features",
        pretext="imagenet",
        finetune="patchcore",
        changes=IMAGENET,
        note=(
            "Needs model.weights; nothing is trained. The coreset is 1 % of at most 100,000 "
            "patches inside the masks."
        ),
        extra=True,
    ),
}
