"""Whether heat maps find what is abnormal: pointing game and pixel AUROC on synthetic truth.

python -m benchmarks.maps DEMO [RUN]

DEMO is the folder of `selftaught demo --out DEMO`, which is made where it is missing; RUN another
run on its images, DEMO/run by default. On the abnormal films of the test set, in their own pixels:
`pointing` is the share whose hottest pixel lies in a box of the truth (Zhang et al., 2016),
`pixel_auroc` the mean over films of the AUROC of pixels inside the truth's mask against the others,
`normal_top` the share of normal test films that reach the top of the scale. Baselines: the centre
of the film, a random pixel, the brightest place, and the same maps of untrained weights.
"""

import argparse
import json
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from benchmarks.record import kept, write
from selftaught import Detector
from selftaught.cli import demo
from selftaught.cli.maps import fix_scale
from selftaught.data.images.decode import read_grey
from selftaught.evaluation.metrics import auroc
from selftaught.evaluation.run_files import read_table
from selftaught.maps import METHODS, film_of, on_film

BRIGHT = 0.03  # of the longer side: the brightest place is of film blurred by so much


def pointing(heat: np.ndarray, boxes: list[list[float]]) -> float:
    """Share of the hottest pixels, one unless some are tied, inside a box (x0, y0, x1, y1)."""
    y, x = np.nonzero(heat == heat.max())
    inside = np.zeros(len(x), bool)
    for x0, y0, x1, y1 in boxes:
        inside |= (x0 <= x) & (x <= x1) & (y0 <= y) & (y <= y1)
    return float(inside.mean())


def film_figures(heat: np.ndarray, truth: dict, folder: Path) -> dict[str, float]:
    """Both figures of one film's heat (H, W)."""
    mask = read_grey(folder / truth["anomaly_mask"]) > 127
    return {
        "pointing": pointing(heat, truth["boxes"]),
        "pixel_auroc": auroc(mask.ravel().astype(int), heat.ravel()),
    }


def baselines(film: np.ndarray) -> dict[str, np.ndarray]:
    """Heat (H, W) that knows no model."""
    height, width = film.shape
    y, x = np.mgrid[:height, :width]
    sigma = BRIGHT * max(film.shape)
    return {
        "centre": -np.hypot(y - (height - 1) / 2, x - (width - 1) / 2),
        "random": np.zeros(film.shape),  # all pixels tied: the expected figures
        "brightest": cv2.GaussianBlur(film.astype(np.float32), (0, 0), sigma),
    }


def untrained(detector: Detector) -> Detector:
    """The same with fresh weights in every layer that has some."""
    torch.manual_seed(0)
    for module in detector.scorer.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()
    return detector


def measured(run: Path, folder: Path, truth: dict[str, dict]) -> list[dict[str, object]]:
    scores = read_table(run / "scores.csv")
    test = scores[scores["split"] == "test"]
    abnormal = [path for path in test[test["label"] == 1]["path"] if truth[path]["boxes"]]
    normal = list(test[test["label"] == 0]["path"])
    films = {path: read_grey(folder / path) for path in abnormal}
    heats: dict[str, dict[str, np.ndarray]] = {}
    more: dict[str, dict[str, float]] = {}
    for path in abnormal:
        for name, heat in baselines(films[path]).items():
            heats.setdefault(name, {})[path] = heat
    for kind, detector in (
        ("selftaught", Detector.load(run)),
        ("untrained", untrained(Detector.load(run))),
    ):
        for method in METHODS:
            name = f"{kind}, {method}"
            start = time.process_time()
            raw = detector.maps([folder / path for path in abnormal], method=method, scaled=False)
            ms = 1000 * (time.process_time() - start) / len(abnormal)
            heats[name] = {
                path: on_film(one.numpy(), *where(folder / path, detector))
                for path, one in zip(abnormal, raw, strict=True)
            }
            if kind == "selftaught":
                fix_scale(detector, run, method, "", False)
                top = detector.maps([folder / path for path in normal], method=method)
                reached = (top.flatten(1).amax(1) >= 1).float().mean()
                more[name] = {"normal_top": round(float(reached), 3), "ms_per_map": round(ms, 1)}
    return [
        {
            "model": label(run),
            "kind": kind,
            "provider": name,
            "films": len(chosen),
            **means([film_figures(of[path], truth[path], folder) for path in chosen]),
            **more.get(name, {"normal_top": "", "ms_per_map": ""}),
        }
        for kind in ("plate", "wire")
        if (chosen := [path for path in abnormal if truth[path]["kind"] == kind])
        for name, of in heats.items()
    ]


def where(path: Path, detector: Detector) -> tuple:
    film, cut = film_of(path, detector.preprocessing)
    return film.shape, cut


def means(figures: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(float(np.mean([one[name] for one in figures])), 3) for name in figures[0]}


def label(run: Path) -> str:
    facts = json.loads((run / "model" / "model.json").read_text())
    network = facts["network"]
    return f"{facts['method']}, {network['encoder']['architecture']}, {network['image_size']} px"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("demo", type=Path)
    parser.add_argument("run", type=Path, nargs="?")
    options = parser.parse_args()
    if not (options.demo / "run" / "model" / "model.json").exists():
        demo.main(["--out", str(options.demo)])
    folder, run = options.demo / "images", options.run or options.demo / "run"
    truth = {one["path"]: one for one in json.loads((folder / "truth.json").read_text())["images"]}
    rows = measured(run, folder, truth)
    for row in rows:
        print(*row.values(), sep=", ")
    name = label(run)
    print(write("maps", [*kept("maps", lambda row: row["model"] != name), *rows]))


if __name__ == "__main__":
    main()
