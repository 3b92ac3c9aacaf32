"""How often `prepare` turns a film wrongly, or misses a negative: sets with some films inverted.

    python -m benchmarks.polarity NAME=FOLDER ... [--films 600] [--phantoms 160] [--out CSV]

Takes the films of each folder for positives. NAME is the body part that a manifest would name. Of
each folder a half (by the hash of the file's name) was used to choose constants and the mean chest;
both halves are reported apart. Films are inverted after the carrier search. Cells: films of one
folder, and of two mixed, 1, 3, 8, 20 and all of them in a set, 0 to 100 % inverted, with and
without the body part's name. Wanted: at most 0.5 % of the sound turned, 95 % of the negatives found
in sets of 20 and more.
"""

import argparse
import csv
import hashlib
import itertools
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from selftaught.data.images.decode import read_grey
from selftaught.data.images.limits import BadImage
from selftaught.data.manifest.films import IMAGE_SUFFIXES
from selftaught.data.prepare.carrier import find_carrier
from selftaught.data.prepare.config import PrepareConfig
from selftaught.data.prepare.geometry import shrink, upright
from selftaught.data.prepare.polarity import Kind, Look, invert, kind_of, look_at
from selftaught.data.prepare.reference import judge_in_set, settle
from selftaught.data.prepare.survey import FILMS, spread
from selftaught.phantoms.radiograph import radiograph
from selftaught.workers import available_cores

SIZES, SHARES, LEAST_FILMS = (1, 3, 8, 20, 0), (0.0, 0.05, 0.2, 0.5, 0.8, 1.0), 400
PHANTOM_SEED = 501  # constants were chosen on others


class Both(NamedTuple):
    """A film, the same inverted, and its body part."""

    looks: tuple[Look, Look]
    kind: Kind


def look_at_both(source: Path | int, name: str) -> Both | None:
    """A file, or the phantom of a number; None where it cannot be read."""
    cv2.setNumThreads(1)
    try:
        if isinstance(source, int):
            phantom = radiograph(PHANTOM_SEED, source, clutter=source % 2 == 0)
            grey = invert(phantom.image) if phantom.inverted else phantom.image
        else:
            grey = read_grey(source)
    except BadImage:
        return None
    found = find_carrier(grey)
    film = shrink(grey if found is None else upright(grey, found.quad), PrepareConfig().size)
    return Both((look_at(film), look_at(invert(film))), kind_of(name))


def half_of(path: Path) -> str:
    """Which half a film belongs to."""
    return "chosen on" if hashlib.sha256(path.name.encode()).digest()[0] % 2 == 0 else "held out"


def cell(pools: list[list[Both]], size: int, share: float, named: bool) -> dict[str, object]:
    """Sets of films drawn from pools, judged as `prepare` does."""
    films = min(size or 10**9, sum(map(len, pools)))
    random = np.random.default_rng([size, int(100 * share), named])
    count = dict.fromkeys(("sets", "sound", "turned", "negatives", "found", "unsure"), 0)
    count["unsettled sets"] = 0
    while count["sound"] + count["negatives"] < LEAST_FILMS:
        drawn = [pool[i] for pool in pools for i in random.permutation(len(pool))]
        drawn = [drawn[i] for i in random.permutation(len(drawn))[:films]]
        chance = random.random(films)
        inverted = chance < share if films < 20 else chance.argsort().argsort() < share * films
        looks = [one.looks[int(turn)] for one, turn in zip(drawn, inverted, strict=True)]
        reference = settle([looks[i] for i in spread(films, FILMS)], [False] * films)
        count["sets"] += 1
        count["unsettled sets"] += reference.unsettled
        for look, one, negative in zip(looks, drawn, inverted, strict=True):
            verdict, _ = judge_in_set(look, one.kind if named else "unknown", reference)
            count["negatives" if negative else "sound"] += 1
            count["unsure"] += verdict == "unsure"
            if verdict == "negative":
                count["found" if negative else "turned"] += 1
    return {"set": films, "inverted": f"{share:.0%}", "part named": named, **count}


def main() -> None:
    """Measure every cell and write them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--films", type=int, default=600, help="of each folder, by hash")
    parser.add_argument("--phantoms", type=int, default=160, help="half of them cluttered")
    parser.add_argument("--out", type=Path, help="CSV; default: standard output")
    options = parser.parse_args()
    pools: dict[tuple[str, str], list[Both]] = {}
    with ProcessPoolExecutor(available_cores()) as executor:
        for folder in options.folders:
            name, _, place = folder.partition("=")
            paths = [p for p in Path(place).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES]
            paths.sort(key=lambda path: hashlib.sha256(path.name.encode()).digest()[::-1])
            paths = paths[: options.films]
            looks = executor.map(look_at_both, paths, itertools.repeat(name), chunksize=8)
            for path, both in zip(paths, looks, strict=True):
                if both is not None:
                    pools.setdefault((name, half_of(path)), []).append(both)
        numbers = range(options.phantoms)
        looks = executor.map(look_at_both, numbers, itertools.repeat("limb"), chunksize=8)
        pools["phantom limb", "held out"] = [both for both in looks if both is not None]
    rows = []
    for (name, half), pool in pools.items():
        for size, share, named in itertools.product(SIZES, SHARES, (True, False)):
            rows.append({"films": name, "half": half, **cell([pool], size, share, named)})
    for (first, a), (second, b) in itertools.combinations(pools, 2):
        if a == b:
            mixed = [pools[first, a], pools[second, b]]
            for pair in (mixed, [mixed[0][:3], mixed[1]], [mixed[0], mixed[1][:3]]):
                name = f"{len(pair[0])} {first} + {len(pair[1])} {second}"
                rows += [{"films": name, "half": a, **cell(pair, 0, s, False)} for s in SHARES]
    handle = options.out.open("w", newline="") if options.out else sys.stdout
    with handle:
        writer = csv.DictWriter(handle, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
