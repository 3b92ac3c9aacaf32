"""AUROC of methods that need no network, on 64 x 64 pixels: what a trained encoder has to beat.

python -m benchmarks.cheap_baselines SPLIT.csv FOLDER [--name knee]

SPLIT.csv is that of `selftaught split` or of a run, FOLDER the one its paths start from. Nothing is
tuned: 50 principal components, 100 neighbours, L2 logistic regression at scikit-learn's settings
with balanced classes. The same on features of a frozen encoder are rows of `selftaught table1`:
frozen-logistic, frozen-mahalanobis, frozen-knn.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from benchmarks.plot import draw
from benchmarks.record import kept, write
from selftaught.data.images.decode import read_grey
from selftaught.evaluation.metrics import auroc
from selftaught.search import knn_score

SIDE, COMPONENTS, NEIGHBOURS = 64, 50, 100


def pixels(path: Path) -> np.ndarray:
    """(SIDE * SIDE,) float32 in 0-1: on a black square, resized, contrast stretched."""
    grey = read_grey(path)
    grey = grey.astype(np.float32) / np.iinfo(grey.dtype).max
    height, width = grey.shape
    side = max(height, width)
    square = np.zeros((side, side), np.float32)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = grey
    small = cv2.resize(square, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return ((small - small.min()) / max(float(np.ptp(small)), 1e-6)).ravel()


def scores(x: np.ndarray, frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """Anomaly scores (N,) of all images by method, each fitted to the training images alone.

    Args:
        x: (N, D) pixels.
        frame: rows of a split, in the order of x.
    """
    train = (frame["split"] == "train").to_numpy()
    semi = frame["semi_label"].to_numpy()
    label = frame["label"].to_numpy()
    normal = x[train & (semi != -1)]  # taken for normal, as the method does
    components = PCA(COMPONENTS, random_state=0).fit(normal)
    rebuilt = components.inverse_transform(components.transform(x))
    found = {
        "PCA reconstruction": np.square(x - rebuilt).mean(1),
        "100-NN": knn_score(x, normal, NEIGHBOURS).numpy(),
    }
    reduced = PCA(COMPONENTS, whiten=True, random_state=0).fit(x[train]).transform(x)
    known = {
        "logistic regression, known labels": (train & (semi != 0), semi < 0),
        "logistic regression, all labels": (train & ~np.isnan(label), label == 1),
    }
    for name, (rows, abnormal) in known.items():
        model = LogisticRegression(class_weight="balanced", max_iter=2000)
        found[name] = model.fit(reduced[rows], abnormal[rows]).decision_function(reduced)
    return found


def main() -> None:
    """Print and record the AUROC of every method on validation and test."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("split", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", default="", help="of the set in the CSV; empty = not recorded")
    options = parser.parse_args()
    frame = pd.read_csv(options.split)
    frame = frame[frame["split"] != "unused"].reset_index(drop=True)
    x = np.stack([pixels(options.folder / name) for name in frame["path"]])
    label = frame["label"].to_numpy(float)
    rows: list[dict[str, object]] = []
    for method, score in scores(x, frame).items():
        row: dict[str, object] = {"set": options.name, "method": method}
        for which in ("val", "test"):
            chosen = (frame["split"] == which).to_numpy() & ~np.isnan(label)
            row[which] = f"{auroc(label[chosen].astype(int), score[chosen]):.4f}"
        rows.append(row)
        print(f"{method:36s} val {row['val']}  test {row['test']}")
    if options.name:
        others = kept("cheap_baselines", lambda r: r["set"] != options.name)
        print(write("cheap_baselines", others + rows), draw("cheap_baselines"))


if __name__ == "__main__":
    main()
