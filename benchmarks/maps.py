"""Whether heat maps find what is abnormal: pointing game and pixel AUROC on synthetic truth.

python -m benchmarks.maps DEMO [RUN]

DEMO is the folder of `selftaught demo --out DEMO`, which is made where it is missing; RUN another
run on its images, DEMO/run by default. On abnormal films that are drawn anew, in their own pixels:
`pointing` is the share whose hottest pixel lies in a box of the truth (Zhang et al., 2016),
`pixel_auroc` the mean over films of the AUROC of pixels inside the truth's mask against the others,
`normal_top` and `abnormal_top` the shares of new films that reach the top of the scale. Baselines:
the centre of the film, a random pixel, the brightest place, and the default maps of fresh weights.
"""

import argparse
import json
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from benchmarks.plot import draw
from benchmarks.record import kept, write
from selftaught import Detector
from selftaught.cli import demo
from selftaught.data.images.decode import read_grey
from selftaught.evaluation.metrics import auroc
from selftaught.evaluation.run_files import read_table
from selftaught.maps import METHODS, Scale, film_of, on_film
from selftaught.maps.folder import films_of
from selftaught.phantoms import write_set

KINDS = demo.KINDS
FILMS, SEED = 64, 1001
NORMALS = 32
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
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            module.reset_parameters()
    return detector


def measured(run: Path, folder: Path) -> list[dict[str, object]]:
    listed = read_table(folder / "manifest.csv")
    document = json.loads((folder / "truth.json").read_text())
    truth = {one["path"]: one for one in document["images"]}
    abnormal = listed[[bool(truth[path]["boxes"]) for path in listed["path"]]]
    normal = listed[listed["label"] == 0]
    split, root = read_table(run / "split.csv"), run.parent / "images"
    known = split[(split["split"] == "val") & (split["label"] == 0)].head(NORMALS)
    heats: dict[str, list[np.ndarray]] = {}
    more: dict[str, dict[str, float]] = {}
    for path in abnormal["path"]:
        for name, heat in baselines(read_grey(folder / path)).items():
            heats.setdefault(name, []).append(heat)
    trained = Detector.load(run)
    flagged = trained.explain(**films_of(trained, abnormal, folder))["flagged"].to_numpy(bool)
    fresh = untrained(Detector.load(run))
    for kind, detector, methods in (
        ("selftaught", trained, METHODS),
        ("untrained", fresh, (fresh.map_method,)),
    ):
        for method in methods:
            name = f"{kind}, {method}"
            start = time.process_time()
            raw = detector.maps(**films_of(detector, abnormal, folder), method=method, scaled=False)
            ms = 1000 * (time.process_time() - start) / len(abnormal)
            heats[name] = [
                on_film(one.numpy(), *where(folder / path, detector))
                for path, one in zip(abnormal["path"], raw, strict=True)
            ]
            if kind == "selftaught":
                given = films_of(detector, known, root)
                scale = Scale.from_normals(
                    method, detector.maps(**given, method=method, scaled=False)
                )
                calm = detector.maps(
                    **films_of(detector, normal, folder), method=method, scaled=False
                )
                more[name] = {
                    "normal_top": share_at_top(scale, calm),
                    "abnormal_top": share_at_top(scale, raw),
                    "ms_per_map": round(ms, 1),
                }
    rows: list[dict[str, object]] = []
    for kind in KINDS:
        of_kind = np.array([truth[path]["kind"] == kind for path in abnormal["path"]])
        for which, chosen in ((kind, of_kind), (f"{kind}, flagged", of_kind & flagged)):
            for name, of in heats.items():
                figures = [
                    film_figures(of[n], truth[abnormal["path"].iloc[n]], folder)
                    for n in np.flatnonzero(chosen)
                ]
                row = {"model": label(run), "kind": which, "provider": name, "films": len(figures)}
                blank = {"normal_top": "", "abnormal_top": "", "ms_per_map": ""}
                rows.append({**row, **means(figures), **more.get(name, blank)})
    return rows


def share_at_top(scale: Scale, raw: torch.Tensor) -> float:
    """Share of films whose hottest place reaches the top of the scale."""
    return round(float((scale(raw).flatten(1).amax(1) >= 1).float().mean()), 3)


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
    run = options.run or options.demo / "run"
    write_set(
        options.demo / "fresh",
        FILMS,
        seed=SEED,
        abnormal_fraction=0.75,
        size=128,
        clutter=False,
        severity=0.9,
        kinds=KINDS,
        body_parts=demo.PARTS,
    )
    rows = measured(run, options.demo / "fresh")
    for row in rows:
        print(*row.values(), sep=", ")
    name = label(run)
    print(write("maps", [*kept("maps", lambda row: row["model"] != name), *rows]), draw("maps"))


if __name__ == "__main__":
    main()
