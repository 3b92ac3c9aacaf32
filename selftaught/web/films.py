"""The films of a page by number: scores, labels, the order they are offered in, their like."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from selftaught.errors import InputError
from selftaught.evaluation.images import NEIGHBOURS, normal_training_rows
from selftaught.evaluation.report import find_image_root
from selftaught.evaluation.run_files import RunFiles, read_run
from selftaught.models.preprocessing import Preprocessing
from selftaught.semi_labels import UNKNOWN

SPREAD = 200  # films that are far from all before the rest follow by their distance alone
BLOCK = 30  # of an order that is hidden
ROWS = 2048


@dataclass(frozen=True, kw_only=True)
class Films:
    """The films of a run or a list; the number of one is its row.

    Attributes:
        table: columns path, label (float64, NaN blank), split ("" of a list that has none),
            body_part and mask ("" where there is none), score; percentile, if known.
        root: folder of the paths; None = unknown.
        features: (N, D) of the films, for their like; None = not known beforehand.
        threshold: of the model; None where it has none.
        normals: films that are known to be normal, of which the nearest are shown.
        contained: whether paths may not leave `root`, as of a run folder that came from others.
    """

    table: pd.DataFrame
    root: Path | None
    features: np.ndarray | None = None
    threshold: float | None = None
    normals: "Normals" = field(default_factory=lambda: Normals())
    contained: bool = True

    @property
    def sets(self) -> dict[str, int]:
        """Names of the sets with their numbers of films."""
        counts = self.table["split"].value_counts()
        return {name: int(counts[name]) for name in ("test", "val", "train", "") if name in counts}

    def rows(self, split: str) -> np.ndarray:
        """Numbers of the films of a set; "all" = every one."""
        return np.flatnonzero(
            np.ones(len(self.table), bool) if split == "all" else self.table["split"] == split
        )

    def file(self, number: int) -> Path:
        """Where a film is.

        Raises:
            InputError: nobody knows, or it is not where it may be.
        """
        return self._file(str(self.table["path"].iloc[number]))

    def _file(self, path: str) -> Path:
        return _file(self.root, path, self.contained)

    def given(self, number: int, films: Preprocessing) -> dict[str, Any]:
        """What a detector is given beside a film's file: body part, and a mask where one counts.

        Args:
            number: of the film.
            films: what the model's films went through.
        """
        row = self.table.iloc[number]
        given: dict[str, Any] = {"body_parts": [row["body_part"]]}
        if (films.masked or not films.known) and self.root and (self.table["mask"] != "").any():
            given["masks"] = [self._file(row["mask"]) if row["mask"] else None]
        return given

    def order(self, split: str, by: str, hidden: bool, labelled: Sequence[int]) -> np.ndarray:
        """Numbers of a set's films as they are offered.

        Args:
            split: the set.
            by: score = highest first; mixed = by turns the highest, those nearest to the threshold
                and those far from all that is labelled; list = as in the list.
            hidden: whether the order may not tell the score: it is drawn, of "mixed" in blocks.
            labelled: films with a label of a reader.
        """
        rows = self.rows(split)
        score = self.table["score"].to_numpy(float)[rows]
        score = np.where(np.isnan(score), -np.inf, score)
        if by == "mixed":
            rows = rows[self._mixed(rows, score, labelled)]
        elif by == "score" and not hidden:
            rows = rows[np.argsort(-score, kind="stable")]
        if hidden and by != "list":
            drawn, size = np.random.default_rng(0), BLOCK if by == "mixed" else len(rows)
            parts = [rows[i : i + size] for i in range(0, len(rows), max(size, 1))]
            rows = np.concatenate([drawn.permutation(part) for part in parts] or [rows])
        return rows

    def _mixed(self, rows: np.ndarray, score: np.ndarray, labelled: Sequence[int]) -> np.ndarray:
        """Positions in `rows`, by turns of each kind."""
        kinds = [np.argsort(-score, kind="stable")]
        if self.threshold is not None:
            kinds.append(np.argsort(np.abs(score - self.threshold), kind="stable"))
        if self.features is not None:
            semi = self.table.get("semi_label", pd.Series(UNKNOWN, self.table.index))
            known = np.flatnonzero(semi.fillna(UNKNOWN).to_numpy() != UNKNOWN)
            known = np.union1d(known, np.array(labelled, int)).astype(int)
            kinds.append(far_from(self.features[rows], self.features[known]))
        turns = np.stack(kinds, axis=1).ravel()
        _, first = np.unique(turns, return_index=True)
        turns = turns[np.sort(first)]
        # Films without a score have no features either.
        return turns[np.argsort(score[turns] == -np.inf, kind="stable")]

    def like(self, number: int) -> list[tuple[int, float]]:
        """Numbers in `normals` of the nearest to a film, with their distances."""
        row = self.table.iloc[number]
        if self.features is None or np.isnan(row["score"]):
            return []
        itself = str(row["path"]) if self.root == self.normals.root else ""
        return self.normals.nearest(self.features[number], NEIGHBOURS, itself)


@dataclass(frozen=True, kw_only=True)
class Normals:
    """Films that are known to be normal.

    Attributes:
        paths: of each.
        features: (M, D).
        root: folder of the paths.
        words: what they are.
    """

    paths: Sequence[str] = ()
    features: np.ndarray | None = None
    root: Path | None = None
    words: str = ""

    def nearest(self, h: np.ndarray, count: int, itself: str = "") -> list[tuple[int, float]]:
        """Numbers and distances of the nearest `count`; the path `itself` is none of them."""
        if self.features is None or not len(self.features):
            return []
        distances = np.sqrt(np.square(self.features - h).sum(axis=1, dtype=np.float64))
        nearest = np.argsort(distances, kind="stable")[: count + 1]
        others = [int(one) for one in nearest if self.paths[one] != itself]
        return [(one, float(distances[one])) for one in others[:count]]

    def file(self, number: int) -> Path:
        """Where one is; errors as of `Films.file`."""
        return _file(self.root, self.paths[number], contained=True)


def _file(root: Path | None, path: str, contained: bool) -> Path:
    if root is None:
        raise InputError("the folder of the films is not recorded")
    file = root / path
    if contained and not file.resolve().is_relative_to(root.resolve()):
        raise InputError("the film lies outside the folder of the films")
    return file


def far_from(features: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Rows of features (N, D), each the farthest from the known (K, D) and from all before it.

    After the first 200 the others follow by their distance from all these.
    """
    count = len(features)
    distances, lengths = np.full(count, np.inf), np.square(features).sum(axis=1, dtype=np.float64)

    def nearer(others: np.ndarray) -> np.ndarray:
        """Squared distances to the nearest of others and of those before."""
        squares = np.square(others).sum(axis=1, dtype=np.float64) - 2.0 * (features @ others.T)
        return np.minimum(distances, lengths + squares.min(axis=1))

    for start in range(0, len(known), ROWS):
        distances = nearer(known[start : start + ROWS])
    chosen: list[int] = []
    for _ in range(min(SPREAD, count)):
        chosen.append(int(np.argmax(distances)))
        distances = nearer(features[chosen[-1:]])
        distances[chosen] = -np.inf
    rest = np.argsort(-distances, kind="stable")[: count - len(chosen)]
    return np.concatenate([chosen, rest]).astype(int)


def films_of_run(folder: Path) -> Films:
    """The films that a finished run scored.

    Raises:
        InputError: it is no finished run.
    """
    run = read_run(folder)
    table = run.scores.copy()
    for name in ("split", "body_part"):
        table[name] = table[name] if name in table else ""
    table["mask"] = ""
    if run.split is not None and "mask" in run.split:
        masks = run.split.set_index("path")["mask"]
        table["mask"] = table["path"].map(masks).fillna("")
    return Films(
        table=table,
        root=find_image_root(run),
        features=run.embeddings.get("h"),
        threshold=threshold_of(run.model),
        normals=normals_of(run),
    )


def films_of_list(
    table: pd.DataFrame,
    root: Path,
    features: np.ndarray | None,
    *,
    threshold: float | None,
    normals: Normals,
    contained: bool,
) -> Films:
    """The films of a list that was scored; those that cannot be read come last.

    Args:
        table: the manifest's, with the columns of `Detector.explain`.
        root: folder of its paths.
        features: (N, D), NaN where a film cannot be read; None: the method has none.
        threshold: of the model.
        normals: films to compare with; without any, those of the list that are labelled normal.
        contained: whether paths may not leave `root`.
    """
    table = table.assign(split="", label=table["label"].astype("Float64").astype(float))
    if features is not None and normals.features is None:
        rows = np.flatnonzero((table["label"] == 0) & np.isfinite(features).all(axis=1))
        normals = Normals(
            paths=list(table["path"].iloc[rows]),
            features=features[rows],
            root=root,
            words="films of this list that are labelled normal",
        )
    return Films(
        table=table,
        root=root,
        features=None if features is None else np.nan_to_num(features),
        threshold=threshold,
        normals=normals,
        contained=contained,
    )


def normals_of_run(folder: Path) -> Normals:
    """The normal training films of a run folder; none where it is no finished run."""
    try:
        return normals_of(read_run(folder))
    except InputError:
        return Normals()


def normals_of(run: RunFiles) -> Normals:
    """The normal training films of a run."""
    rows, words = normal_training_rows(run.scores)
    features = run.embeddings.get("h")
    return Normals(
        paths=list(run.scores["path"].iloc[rows]),
        features=None if features is None else features[rows],
        root=find_image_root(run),
        words=words,
    )


def threshold_of(model: Mapping[str, Any]) -> float | None:
    """The threshold of a model.json."""
    stored = model.get("calibration")
    value = (stored if isinstance(stored, dict) else model).get("threshold")
    return float(value) if isinstance(value, int | float) else None
