"""What a model remembers of its training images, and the scores that compare images with it."""

import math
from collections.abc import Collection, Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from selftaught import host
from selftaught.errors import require
from selftaught.search import knn_score

By = Literal["model", "ratio", "knn", "normality"]
# What the score is, in the report's words; `model` is the method's to name.
NAMES = {
    "ratio": "mean distance of unit features to the nearest normal training images, less that to "
    "the nearest known abnormal ones",
    "knn": "mean distance of the features to the nearest normal training images",
    "normality": "logarithm of the Mahalanobis distance of the features from normal training "
    "images",
}
COLUMNS = ("ratio_score", "normality_score", "knn_score")
ROWS = 4096  # in float64 at a time


def check_scoring(by: str, neighbours: int, ratio_neighbours: int) -> None:
    """Refuse settings out of range.

    Raises:
        ValueError: names the option first.
    """
    require("by", by, ", ".join(get_args(By)), by in get_args(By))
    require("neighbours", neighbours, "1 or more", neighbours >= 1)
    require("ratio_neighbours", ratio_neighbours, "1 or more", ratio_neighbours >= 1)


class Bank(nn.Module):
    """Features of training images; h (B, W) -> the columns `COLUMNS` (B,), on the CPU.

    With n = h / |h| (0 stays 0) and "nearest" by Euclidean distance, all rows where there are
    fewer than asked for:

    * `ratio_score`: mean distance of n to the nearest normals' n, less that to the nearest known
      abnormal ones' (a density ratio by neighbours); the first term where none is known;
    * `normality_score`: log of the Mahalanobis distance from the normals, by their mean and
      covariance (Ledoit and Wolf, 2004);
    * `knn_score`: mean distance of h to the nearest normals.

    An image of the bank is its own neighbour: among training images the first score of a normal
    one is too low, of a known abnormal one too high. They are not to be judged by it.

    Args:
        normals: (N, W) features of images that are not known to be abnormal, N at least 1.
        abnormal: (M, W) of the known abnormal ones; M may be 0.
        mean: (W,) of the normals.
        whitening: (W, W), a square root of the inverse of their covariance, which loses less in
            float32 than the inverse would.
        by: which score is the score; `model`: the method's own.
        neighbours: of `knn_score`.
        ratio_neighbours: of `ratio_score`.
        drawn: where normals are a sample: `of` how many, and the `seed` it was drawn with.
    """

    normals: Tensor
    abnormal: Tensor
    mean: Tensor
    whitening: Tensor

    def __init__(
        self,
        normals: Tensor,
        abnormal: Tensor,
        mean: Tensor,
        whitening: Tensor,
        *,
        by: By = "model",
        neighbours: int = 100,
        ratio_neighbours: int = 5,
        drawn: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        check_scoring(by, neighbours, ratio_neighbours)
        self.by, self.neighbours, self.ratio_neighbours = by, neighbours, ratio_neighbours
        self.drawn = dict(drawn or {})
        self.register_buffer("normals", normals)
        self.register_buffer("abnormal", abnormal)
        self.register_buffer("mean", mean)
        self.register_buffer("whitening", whitening)

    @classmethod
    def of(cls, normals: Tensor, abnormal: Tensor, **settings: Any) -> "Bank":
        """A bank of features (N, W) and (M, W) on the CPU, with the normals' statistics."""
        mean, whitening = statistics(normals)
        return cls(normals, abnormal, mean, whitening, **settings)

    def facts(self) -> dict[str, Any]:
        """What a model stores beside the tensors, as JSON values."""
        return {
            "by": self.by,
            "neighbours": self.neighbours,
            "ratio_neighbours": self.ratio_neighbours,
            "normals": len(self.normals),
            "abnormal": len(self.abnormal),
            "width": len(self.mean),
            "drawn": self.drawn,
        }

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> "Bank":
        """A bank on the meta device, whose tensors have yet to be read.

        Raises:
            KeyError: something is missing.
            ValueError: a number out of range.
        """
        least = {"normals": 1, "abnormal": 0, "width": 1, "neighbours": 1, "ratio_neighbours": 1}
        for name, low in least.items():
            fine = type(facts[name]) is int and facts[name] >= low
            require(f"bank.{name}", facts[name], f"a whole number, {low} or more", fine)
        count, known, width = facts["normals"], facts["abnormal"], facts["width"]
        shapes = [(count, width), (known, width), (width,), (width, width)]
        names = ("by", "neighbours", "ratio_neighbours", "drawn")
        tensors = (torch.empty(shape, device="meta", dtype=torch.float32) for shape in shapes)
        return cls(*tensors, **{name: facts[name] for name in names})

    def forward(self, h: Tensor, names: Collection[str] = COLUMNS) -> dict[str, Tensor]:
        """The columns `names` (B,) float32 of features h (B, W), by name.

        They do not depend on what rows are asked together. Right to 1e-6 of each mean distance.

        Raises:
            ValueError: h is of another width, or not finite.
        """
        made = {
            "ratio_score": self._ratio,
            "normality_score": self._normality,
            "knn_score": lambda rows: knn_score(rows, self.normals, self.neighbours),
        }
        h = h.detach().cpu()
        return {name: made[name](h) if h.shape[0] else torch.zeros(0) for name in names}

    def holds(self, h: Tensor) -> Tensor:
        """Which of the images with features h (B, W) are remembered, as (B,) bool.

        The same film through the same preprocessing has the same features to rounding: within a
        thousandth of the spread of those that are remembered. An encoder that has collapsed tells
        no image from another: then none.
        """
        rows = torch.cat([self.normals, self.abnormal])
        spread = (rows.double() - self.mean.double()).norm(dim=1).square().mean().sqrt()
        if not len(h) or spread < 1e-3 * rows.double().norm(dim=1).mean():
            return torch.zeros(len(h), dtype=torch.bool)
        return knn_score(h.detach().cpu(), rows, 1) < 1e-3 * spread

    def _ratio(self, h: Tensor) -> Tensor:
        n, k = unit(h), self.ratio_neighbours
        score = knn_score(n, unit(self.normals), k)
        return score - knn_score(n, unit(self.abnormal), k) if len(self.abnormal) else score

    @host.defaults()
    def _normality(self, h: Tensor) -> Tensor:
        mean, whitening = self.mean.double(), self.whitening.double()
        parts = [((rows.double() - mean) @ whitening).norm(dim=1) for rows in _parts(h)]
        # At the mean itself there would be no logarithm.
        return torch.cat(parts).clamp_min(torch.finfo(torch.float32).tiny).log().float()


def _parts(h: Tensor) -> tuple[Tensor, ...]:
    """Rows that go to float64 at a time; a program that is traced takes any number."""
    return (h,) if torch.compiler.is_exporting() else h.split(ROWS)


def unit(h: Tensor) -> Tensor:
    """Rows (N, W) at length 1, computed in float64; rows of zeros stay."""
    lengths = torch.cat([rows.double().norm(dim=1) for rows in _parts(h)] or [torch.zeros(0)])
    return (h / lengths.where(lengths > 0, 1.0)[:, None]).to(h.dtype)


@host.defaults()
def statistics(normals: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (W,) and whitening (W, W) of rows (N, W): |(h - mean) whitening| is Mahalanobis'.

    The covariance is shrunk (Ledoit and Wolf, 2004). Directions whose variance is nothing beside
    the largest count by a floor of 1e-12 of it; rows that do not differ at all: by distance.
    """
    from sklearn.covariance import ledoit_wolf

    x = normals.double().numpy()
    width = x.shape[1]
    covariance = ledoit_wolf(x)[0] if len(x) > 1 else np.zeros((width, width))
    values, vectors = np.linalg.eigh(covariance)
    largest = float(values[-1])
    # What rounding leaves of rows that are the same is no variance.
    scale = float(np.square(x).mean())
    if not math.isfinite(largest) or largest <= scale * np.finfo(np.float64).eps ** 2 * width:
        values, largest = np.ones(width), 1.0
    root = vectors / np.sqrt(np.maximum(values, 1e-12 * largest))
    made = torch.from_numpy(x.mean(axis=0)), torch.from_numpy(root)
    return made[0].to(normals.dtype), made[1].to(normals.dtype).contiguous()
