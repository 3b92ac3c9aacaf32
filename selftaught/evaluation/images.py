"""The test images that stand out, each with its nearest normal training images."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from selftaught.errors import MachineError
from selftaught.evaluation.plot_style import data_uri
from selftaught.maps.overlay import eight_bits
from selftaught.semi_labels import KNOWN_ABNORMAL

LARGE, SMALL = (220, 260), (96, 112)
NEIGHBOURS = 3
LABELS = {0.0: "normal", 1.0: "abnormal"}


@dataclass(frozen=True, kw_only=True)
class Card:
    """One image of a grid.

    Attributes:
        path: as in `scores.csv`.
        thumbnail: `data:` URI; None when the image cannot be shown.
        label: normal, abnormal or "no label".
        body_part: "" when unknown.
        score: distance to the nearest centre; for a neighbour, distance to the image it belongs to.
        percentile: against normal validation images, in percent; None when unknown.
        flagged: above the stored threshold; None when there is none.
        neighbours: nearest normal training images, nearest first.
    """

    path: str
    thumbnail: str | None
    label: str
    body_part: str
    score: float
    percentile: float | None
    flagged: bool | None
    neighbours: tuple["Card", ...] = ()


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Images under one heading.

    Attributes:
        title: the heading.
        note: what is shown.
        cards: the images, in order.
    """

    title: str
    note: str
    cards: tuple[Card, ...]


class Thumbnails:
    """Reads images below one folder and shrinks them, each file once.

    Attributes:
        problem: why no image can be shown at all; "" when some may be.
        failed: files that could not be shown.
    """

    def __init__(self, root: Path | None) -> None:
        """Args: root: the folder that paths are relative to, or None when it is unknown."""
        self.root = root.resolve() if root else None
        self.failed: set[str] = set()
        self.problem = ""
        if self.root is None:
            self.problem = "The images cannot be shown: their folder is not recorded."
        elif not self.root.is_dir():
            self.problem = "The images cannot be shown: their folder is no longer there."
        self._cache: dict[tuple[str, tuple[int, int]], str | None] = {}

    def get(self, path: str, size: tuple[int, int]) -> str | None:
        """The image at `path` shrunk into `size` (width, height), as a `data:` URI, or None."""
        if self.problem:
            return None
        key = (path, size)
        if key not in self._cache:
            self._cache[key] = self._read(path, size)
            if self._cache[key] is None:
                self.failed.add(path)
        return self._cache[key]

    def _read(self, path: str, size: tuple[int, int]) -> str | None:
        from selftaught.data.images.decode import read_grey

        assert self.root is not None
        try:
            file = (self.root / path).resolve()
            # A run folder may come from somebody else: its paths must not reach other files.
            if not file.is_relative_to(self.root):
                return None
            return encode(read_grey(file), size)
        except (OSError, ValueError, MachineError):
            return None


def encode(image: np.ndarray, size: tuple[int, int]) -> str:
    """A small JPEG of a grey image as a `data:` URI; arguments as for `jpeg`."""
    return data_uri(jpeg(image, size), "image/jpeg")


def jpeg(image: np.ndarray, size: tuple[int, int], quality: int = 82) -> bytes:
    """A small JPEG of an image.

    Args:
        image: (H, W) uint8 or uint16, as `eight_bits` shows it, or (H, W, 3) uint8.
        size: largest width and height in pixels.
        quality: of the JPEG.
    """
    from PIL import Image

    small = Image.fromarray(np.ascontiguousarray(eight_bits(image)))
    small.thumbnail(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def normal_training_rows(scores: pd.DataFrame) -> tuple[np.ndarray, str]:
    """Positions of the normal training images, and the words for them.

    Without a label the images not known to be abnormal stand in, as they do for the centres.

    Args:
        scores: columns `split`, `label`; optional `semi_label`.
    """
    train = (scores["split"] == "train").to_numpy()
    normal = np.flatnonzero(train & (scores["label"] == 0).to_numpy())
    if len(normal):
        return normal, "normal training images"
    known = scores["semi_label"].to_numpy() if "semi_label" in scores else np.zeros(len(scores))
    others = np.flatnonzero(train & (known != KNOWN_ABNORMAL))
    return others, "training images not known to be abnormal"


def _neighbours(
    embeddings: dict[str, np.ndarray], queries: np.ndarray, database: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Distances and positions of the nearest database rows of each query, in `h`."""
    if "h" not in embeddings or not len(database) or not len(queries):
        return np.zeros((len(queries), 0)), np.zeros((len(queries), 0), dtype=int)
    from sklearn.neighbors import NearestNeighbors

    count = min(NEIGHBOURS, len(database))
    index = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(embeddings["h"][database])
    distances, places = index.kneighbors(embeddings["h"][queries])
    return distances, database[places]


def card_of(row: Any, thumbnail: str | None, score: float | None = None) -> Card:
    """Card of one row of `scores.csv`; `score` in place of the row's."""
    percentile = row.get("percentile", np.nan)
    flagged = str(row.get("flagged", "")).strip().lower()
    return Card(
        path=row["path"],
        thumbnail=thumbnail,
        label=LABELS.get(row["label"], "no label"),
        body_part=row.get("body_part", ""),
        score=float(row["score"]) if score is None else score,
        percentile=None if np.isnan(percentile) else float(percentile),
        flagged={"true": True, "1": True, "false": False, "0": False}.get(flagged),
    )


def _selections(test: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """Heading, note and rows of each grid; `test` is sorted from the largest score."""
    count = min(8, (len(test) + 1) // 2)
    normal, abnormal = test[test["label"] == 0], test[test["label"] == 1]
    selections = [
        ("Most anomalous", "The highest scores of the test set.", test.head(count)),
        (
            "Least anomalous",
            "The lowest scores of the test set, lowest first.",
            test.iloc[::-1].head(min(count, len(test) // 2)),
        ),
    ]
    # With one label only these would repeat the grids above.
    if len(normal) and len(abnormal):
        selections += [
            ("Normal, but high", "Normal test images with the highest scores.", normal.head(4)),
            (
                "Abnormal, but low",
                "Abnormal test images with the lowest scores, lowest first.",
                abnormal.iloc[::-1].head(4),
            ),
        ]
    return [selection for selection in selections if len(selection[2])]


def grids(
    scores: pd.DataFrame, embeddings: dict[str, np.ndarray], root: Path | None
) -> tuple[list[Grid], list[str]]:
    """Grids of the test images that stand out.

    Args:
        scores: `scores.csv`.
        embeddings: name -> (N, D) in the order of `scores`; neighbours need `h`.
        root: folder that the paths are relative to; None when unknown.

    Returns:
        The grids, and a sentence for everything that could not be shown.
    """
    thumbnails = Thumbnails(root)
    test = scores[(scores["split"] == "test") & np.isfinite(scores["score"])]
    if test.empty:
        return [], ["No images: the test set is empty."]
    test = test.sort_values(["score", "path"], ascending=False, kind="stable")
    database, words = normal_training_rows(scores)
    filled = []
    for title, note, rows in _selections(test):
        distances, nearest = _neighbours(embeddings, rows.index.to_numpy(), database)
        cards = []
        for position, (_, row) in enumerate(rows.iterrows()):
            neighbours = tuple(
                card_of(near, thumbnails.get(near["path"], SMALL), float(distance))
                for near, distance in zip(
                    (scores.iloc[index] for index in nearest[position]),
                    distances[position],
                    strict=True,
                )
            )
            card = card_of(row, thumbnails.get(row["path"], LARGE))
            cards.append(Card(**{**vars(card), "neighbours": neighbours}))
        filled.append(Grid(title=title, note=note, cards=tuple(cards)))
    return filled, _problems(thumbnails, embeddings, database, words)


def _problems(
    thumbnails: Thumbnails, embeddings: dict[str, np.ndarray], database: np.ndarray, words: str
) -> list[str]:
    """What the grids lack, and what stands in for what."""
    problems = [thumbnails.problem] if thumbnails.problem else []
    if thumbnails.failed:
        problems.append(
            f"{len(thumbnails.failed)} of the images cannot be shown: they were moved or deleted, "
            "lie outside the image folder or cannot be decoded."
        )
    if "h" not in embeddings:
        problems.append("No neighbours: the run folder holds no usable embeddings h.")
    elif not len(database):
        problems.append("No neighbours: there is no training image to compare with.")
    elif words != "normal training images":
        problems.append(f"No training image is labelled normal: neighbours are {words}.")
    return problems
