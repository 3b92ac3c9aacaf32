"""PatchCore: a coreset of all patches (Roth et al. 2022, arXiv:2106.08265)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from selftaught.errors import require
from selftaught.losses import nearest_center
from selftaught.methods import noise
from selftaught.methods.begin import sample
from selftaught.methods.frozen import IMAGENET, FrozenOptions
from selftaught.methods.patches import OfPatches, Patches, worst_place
from selftaught.methods.task import Rows, Start, System
from selftaught.models.network import Network

PROJECTED = 128  # dimensions in which a coreset is chosen; distances keep to some tenth there


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
        distance, place = worst_place(distances, inside, torch.ones_like(inside))
        rows = torch.arange(len(place), device=place.device)
        patch, nearest = features[rows, place], index.view_as(inside)[rows, place]
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


TASKS = {"patchcore": Patchcore}
SYSTEMS = {
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
