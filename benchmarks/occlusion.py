"""What a model looks at: AUROC on a run's validation films, with parts of each film taken away.

python -m benchmarks.occlusion MANIFEST RUN...

A model that has learnt the disease loses where the disease lies; one that has learnt borders,
markers or the sharpness of a device keeps its AUROC without the middle and loses it without them.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from selftaught import Detector
from selftaught.data.images.decode import read_grey

FRAME = 0.2  # of each side


def middle(film: np.ndarray, frame: float = FRAME) -> tuple[slice, slice]:
    height, width = film.shape
    rows, columns = round(height * frame), round(width * frame)
    return slice(rows, height - rows), slice(columns, width - columns)


def without_frame(film: np.ndarray) -> np.ndarray:
    """The outer fifth on every side at the film's mean."""
    changed, kept = np.full_like(film, film.mean()), middle(film)
    changed[kept] = film[kept]
    return changed


def without_middle(film: np.ndarray) -> np.ndarray:
    """The inner three fifths at the film's mean."""
    changed = film.copy()
    changed[middle(film)] = film.mean()
    return changed


def without_band(film: np.ndarray) -> np.ndarray:
    """The middle fifth of the height, where a knee's joint space lies, at the film's mean."""
    changed, height = film.copy(), len(film)
    changed[round(0.4 * height) : round(0.6 * height)] = film.mean()
    return changed


def blurred(film: np.ndarray) -> np.ndarray:
    """Without what is finer than a hundredth of the width: the device's sharpness and noise."""
    return cv2.GaussianBlur(film, (0, 0), film.shape[1] / 100)


def sharpness(film: np.ndarray) -> float:
    """Mean square of the Laplacian against the variance of grey levels: no model at all."""
    x = film.astype(np.float64)
    return float(np.square(cv2.Laplacian(x, cv2.CV_64F)).mean() / max(x.var(), 1e-12))


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as they are": lambda film: film,
    "without the outer fifth": without_frame,
    "without the middle": without_middle,
    "without the middle fifth of the height": without_band,
    "blurred": blurred,
}


def areas(run: Path, root: Path) -> dict[str, float]:
    """AUROC of each change, and of sharpness, over the labelled films of a run's set `val`."""
    scores = pd.read_csv(run / "scores.csv")
    val = scores[(scores["split"] == "val") & scores["label"].notna()]
    films = [read_grey(root / path) for path in val["path"]]
    detector, measured = Detector.load(run), {}
    for name, change in CHANGES.items():
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{number}.png" for number in range(len(films))]
            for path, film in zip(paths, films, strict=True):
                cv2.imwrite(str(path), change(film))
            table = detector.explain(paths)
        measured[name] = roc_auc_score(val["label"], table["score"])
    area = roc_auc_score(val["label"], [sharpness(film) for film in films])
    return {**measured, "sharpness alone, no model": max(area, 1 - area)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    options = parser.parse_args()
    table = pd.DataFrame([areas(run, options.manifest.parent) for run in options.runs])
    for name in table:
        low, high = table[name].min(), table[name].max()
        print(f"{name}: mean AUROC {table[name].mean():.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
