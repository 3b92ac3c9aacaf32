"""How often `prepare` turns a film wrongly, flags it, or misses a negative: real films and copies.

    python -m benchmarks.polarity FOLDER [IMAGES]

Takes the folder's films for positives, judges each as `prepare` does, after the carrier search,
then its inverted copy. IMAGES: as many, spread evenly; all by default.
"""

import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from selftaught.data.images.decode import read_grey
from selftaught.data.images.limits import BadImage
from selftaught.data.manifest.films import IMAGE_SUFFIXES
from selftaught.data.prepare.carrier import find_carrier
from selftaught.data.prepare.config import PrepareConfig
from selftaught.data.prepare.geometry import shrink, upright
from selftaught.data.prepare.polarity import Verdict, invert, judge


def judge_both(path: Path) -> tuple[Verdict, Verdict] | None:
    """Verdicts on a film and on its inverted copy; None where it cannot be read."""
    cv2.setNumThreads(1)
    try:
        grey = read_grey(path)
    except BadImage:
        return None
    found = find_carrier(grey)
    film = shrink(grey if found is None else upright(grey, found.quad), PrepareConfig().size)
    return judge(film), judge(invert(film))


def main(folder: Path, images: int) -> None:
    """Print both tables."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if 0 < images < len(paths):
        paths = [paths[i] for i in np.linspace(0, len(paths) - 1, images).round().astype(int)]
    with ProcessPoolExecutor() as pool:
        both = [one for one in pool.map(judge_both, paths, chunksize=8) if one is not None]
    for name, verdicts in zip(("as they are", "inverted"), zip(*both, strict=True), strict=True):
        counts = Counter(verdicts)
        shares = ", ".join(
            f"{verdict} {counts[verdict]} ({counts[verdict] / len(both):.1%})"
            for verdict in ("positive", "unsure", "negative")
        )
        print(f"{len(both)} films {name}: {shares}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python -m benchmarks.polarity FOLDER [IMAGES]")
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) == 3 else 0)
