"""Maps of the embeddings of test images (t-SNE), by label, body part and centre."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from selftaught.evaluation.plot_style import (
    ABNORMAL,
    CYCLE,
    NORMAL,
    UNKNOWN,
    Picture,
    plain,
    render,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_POINTS = 1500
LEAST_POINTS = 5
MOST_COLORS = len(CYCLE)
SPACES = {"h": "encoder output h", "z": "projection z"}


def choose_rows(scores: pd.DataFrame, seed: int) -> np.ndarray:
    """Positions of at most 1,500 test images, drawn at random.

    Args:
        scores: column `split`.
        seed: of the draw.
    """
    rows = np.flatnonzero((scores["split"] == "test").to_numpy())
    if len(rows) > MOST_POINTS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MOST_POINTS, replace=False))
    return rows


def project(embeddings: np.ndarray, seed: int) -> np.ndarray | None:
    """t-SNE to the plane, started from the first two principal components.

    Args:
        embeddings: (N, D) finite.
        seed: same seed, same map.

    Returns:
        (N, 2) float32; None for fewer than 5 rows, one column, or rows that are all the same.
    """
    from sklearn.manifold import TSNE

    points = np.asarray(embeddings, dtype=np.float64)
    if len(points) < LEAST_POINTS or points.shape[1] < 2:
        return None
    points = points - points.mean(axis=0)
    largest = np.abs(points).max()
    # Collapsed embeddings would make the start of t-SNE a division by zero.
    if largest < 1e-9 * (1 + np.abs(embeddings).max()):
        return None
    model = TSNE(
        n_components=2,
        init="pca",
        perplexity=min(30.0, (len(points) - 1) / 3),
        random_state=seed % 2**32,
        n_jobs=1,
    )
    return model.fit_transform((points / largest).astype(np.float32))


def _categories(values: Sequence[str]) -> list[tuple[str, np.ndarray, str]]:
    """Name, members and colour of the most frequent values; the rest in grey."""
    array = np.asarray(values, dtype=object).astype(str)
    names, counts = np.unique(array, return_counts=True)
    order = [name for name in names[np.argsort(-counts, kind="stable")] if name]
    categories = [
        (f"{plain(name, 18)} ({(array == name).sum()})", array == name, color)
        for name, color in zip(order, CYCLE, strict=False)
    ]
    rest = ~np.isin(array, order[:MOST_COLORS])
    if rest.any():
        categories.insert(0, (f"other ({rest.sum()})", rest, UNKNOWN))
    return categories


def _colourings(rows: pd.DataFrame) -> list[tuple[str, list[tuple[str, np.ndarray, str]]]]:
    """Title and categories of each map that these rows allow."""
    label = rows["label"].to_numpy()
    by_label = [
        ("no label", np.isnan(label), UNKNOWN),
        ("normal", label == 0, NORMAL),
        ("abnormal", label == 1, ABNORMAL),
    ]
    maps = [
        ("label", [(f"{n} ({m.sum()})", m, color) for n, m, color in by_label if m.any()]),
    ]
    if "body_part" in rows and rows["body_part"].nunique() > 1:
        maps.append(("body part", _categories(rows["body_part"].tolist())))
    if "center" in rows and rows["center"].notna().any():
        centers = ["" if np.isnan(c) else f"centre {c:.0f}" for c in rows["center"]]
        maps.append(("nearest centre", _categories(centers)))
    return maps


def tsne_pictures(
    scores: pd.DataFrame, embeddings: dict[str, np.ndarray], seed: int
) -> tuple[dict[str, list[Picture]], list[str]]:
    """Maps of every embedding.

    Args:
        scores: columns `split`, `label`; optional `body_part`, `center`.
        embeddings: name (h, z) -> (N, D) in the order of `scores`.
        seed: of the draw of images and of t-SNE.

    Returns:
        Pictures by name of the embedding, and a sentence for each map that cannot be drawn.
    """
    rows = choose_rows(scores, seed)
    pictures: dict[str, list[Picture]] = {}
    problems = []
    for name, words in SPACES.items():
        if name not in embeddings:
            continue
        points = project(embeddings[name][rows], seed)
        if points is None:
            problems.append(
                f"No map of the {words}: at least {LEAST_POINTS} test images with different "
                f"embeddings are needed ({len(rows)} test images)."
            )
            continue
        pictures[words] = [
            _scatter(points, title, categories, words)
            for title, categories in _colourings(scores.iloc[rows])
        ]
    if not SPACES.keys() & embeddings:
        problems.append("No map: the run folder holds no usable embeddings.")
    return pictures, problems


def _scatter(
    points: np.ndarray, title: str, categories: list[tuple[str, np.ndarray, str]], space: str
) -> Picture:
    """One map."""

    def draw(figure: "Figure") -> None:
        axes = figure.add_subplot()
        size = float(np.clip(4000 / len(points), 5, 36))
        for name, members, color in categories:
            x, y = points[members].T
            axes.scatter(x, y, s=size, color=color, label=name, alpha=0.75, linewidths=0)
        axes.set(title=f"By {title}", xticks=[], yticks=[])
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.set_facecolor("#f7f9fa")
        figure.legend(
            *axes.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=2,
            markerscale=(30 / size) ** 0.5,
        )

    return render(
        draw,
        alt=f"t-SNE map of the {space} of {len(points)} test images, coloured by {title}.",
        size=(3.8, 4.2),
        vector=False,
    )
