"""Heat maps of a run: films that fix their scale, films to show, their part of the report."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from selftaught.errors import InputError
from selftaught.evaluation.images import Card, card_of, encode
from selftaught.evaluation.run_files import RunFiles, find_image_root, read_run, read_table

FOLDER, TABLE = "maps", "maps.csv"
FLAGGED, CALM = 6, 2  # films of each kind
LARGE = (440, 520)


def normal_validation(run: Path) -> tuple[pd.DataFrame, Path]:
    """The normal validation films of a run, as rows of a manifest, and the folder of their paths.

    Raises:
        InputError: the run does not say where its films are.
    """
    split = read_table(run / "split.csv")
    return split[(split["split"] == "val") & (split["label"] == 0)], _root(read_run(run))


def stand_out(run: Path) -> tuple[pd.DataFrame, Path, str]:
    """Test films to show: those that score highest, flagged ones first, and calm normal ones.

    Returns:
        Rows of a manifest, the folder of their paths, and what tells them from other films.

    Raises:
        InputError: the run has no test films, or does not say where they are.
    """
    files = read_run(run)
    test = files.scores[(files.scores["split"] == "test") & np.isfinite(files.scores["score"])]
    if test.empty:
        raise InputError(f"{run}: its test set is empty; allowed: --data.manifest FILMS --out DIR")
    test = test.sort_values(["score", "path"], ascending=False, kind="stable")
    normal = test[test["label"] == 0]
    middle = normal.iloc[len(normal) // 2 :].head(CALM)
    paths = [*dict.fromkeys([*test.head(FLAGGED)["path"], *middle["path"]])]
    split = read_table(run / "split.csv").drop_duplicates("path").set_index("path", drop=False)
    chosen = split.loc[paths].reset_index(drop=True)
    return chosen, _root(files), hashlib.sha256("\n".join(paths).encode()).hexdigest()


def heat_cards(run: RunFiles) -> list[Card]:
    """The films of the run's own folder of maps; none where there is no such folder."""
    folder = run.folder / FOLDER
    if not (folder / TABLE).is_file():
        return []
    made = read_table(folder / TABLE)
    if not {"path", "map"} <= set(made.columns):
        return []
    rows = {row["path"]: row for _, row in run.scores.iterrows()}
    return [
        card_of(rows[path], _thumbnail(folder, name))
        for path, name in zip(made["path"], made["map"], strict=True)
        if path in rows
    ]


def _thumbnail(folder: Path, name: str) -> str | None:
    """A map of the folder itself: a run may come from somebody else."""
    picture = cv2.imread(str(folder / Path(name).name), cv2.IMREAD_COLOR) if name else None
    return None if picture is None else encode(np.ascontiguousarray(picture[..., ::-1]), LARGE)


def _root(run: RunFiles) -> Path:
    root = find_image_root(run)
    if root is None or not root.is_dir():
        raise InputError(
            f"{run.folder}: the folder of its films is not recorded or no longer there; allowed: "
            "--data.manifest FILMS --data.normals NORMAL-FILMS --out DIR"
        )
    return root
