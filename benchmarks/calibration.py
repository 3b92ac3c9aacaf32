"""Whether `calibrate` and `monitor` keep their promises on real films, which are scored once.

python -m benchmarks.calibration MODEL MANIFEST [--kept scores.npz] [--limit 1583]

MANIFEST lists films that the model was not trained on. Normal ones calibrate and are held back, in
100 draws; films are watched against others of the same list, in 100 draws, and against the same
list of another exposure: grey levels to the power of GAMMAS.
"""

import argparse
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from scipy import stats

from selftaught import Detector
from selftaught.data.images.decode import read_grey
from selftaught.data.manifest import read_manifest
from selftaught.monitoring.compare import compare
from selftaught.monitoring.drift import Films
from selftaught.monitoring.observed import EMBEDDINGS, LEVELS, SCORES, of_model
from selftaught.monitoring.threshold import for_false_alarms

DRAWS = 100
CALIBRATE = 200
WEEK, REFERENCE = 100, 200
GAMMAS = (0.9, 0.8, 0.7, 1.25)
EXPOSED = 400
RATES = (0.01, 0.05)


def scored(model: str, manifest: str, limit: int) -> dict[str, np.ndarray]:
    """What is known of the normal films, and of `EXPOSED` of them at each exposure."""
    listed = read_manifest(manifest, allow_outside=True)
    normal = (listed.table["label"] == 0).fillna(False)
    paths = [listed.root / path for path in listed.table["path"][normal]]
    paths = [paths[i] for i in np.random.default_rng(0).permutation(len(paths))[:limit]]
    detector = Detector.load(model)
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        for gamma in (1.0, *GAMMAS):
            films = paths
            if gamma != 1:
                films = [
                    exposed(path, gamma, Path(folder) / f"{gamma}-{number}.png")
                    for number, path in enumerate(paths[:EXPOSED])
                ]
            table, h, levels = detector.describe(films)
            made[f"score {gamma}"], made[f"h {gamma}"] = table["score"].to_numpy(), h.numpy()
            made[f"levels {gamma}"] = levels.numpy()
    return made


def exposed(path: Path, gamma: float, target: Path) -> Path:
    film = read_grey(path)
    top = np.iinfo(film.dtype).max
    cv2.imwrite(str(target), (np.power(film / top, gamma) * top).round().astype(film.dtype))
    return target


def of_threshold(scores: np.ndarray) -> list[dict]:
    """Held-back films in the stated interval; their rate; uniformity of p-values."""
    generator, inside, rates = np.random.default_rng(1), 0, []
    count = min(CALIBRATE, len(scores) // 2)
    for _ in range(DRAWS):
        order = generator.permutation(len(scores))
        own, rest = scores[order[:count]], scores[order[count:]]
        choice = for_false_alarms(own, 0.05)
        rates.append((rest > choice.calibration.threshold).mean())
        low, high = choice.false_alarms.interval
        inside += bool(low <= rates[-1] <= high)
    values = []
    for _ in range(1000):  # films judged by the same normals are not independent: one film a draw
        order = generator.permutation(len(scores))
        calibration = for_false_alarms(scores[order[:count]], 0.05).calibration
        values.append(calibration.p_values(scores[order[-1:]])[0])
    return [
        {
            "what": f"held-back rate in the interval, {count} calibrate",
            "value": inside,
            "of": DRAWS,
        },
        {"what": "mean held-back rate, wished 0.05", "value": np.mean(rates), "of": DRAWS},
        {
            "what": "KS p of 1,000 conformal p-values",
            "value": stats.kstest(values, "uniform").pvalue,
            "of": 1,
        },
    ]


def of_watch(made: dict[str, np.ndarray], model: str) -> Iterator[dict]:
    """Runs with an alarm, on the same films and on others."""
    total = len(made["score 1.0"])
    week, reference = min(WEEK, total // 3), min(REFERENCE, total - total // 3)

    def part(gamma: float, places: np.ndarray) -> dict[str, Films]:
        return {
            SCORES: Films(values=made[f"score {gamma}"][places]),
            EMBEDDINGS: Films(values=made[f"h {gamma}"][places]),
            **{
                name: Films(values=values)
                for name, values in zip(LEVELS, made[f"levels {gamma}"][places].T, strict=True)
            },
        }

    own = of_model(Detector.load(model))
    own = {name: own[name] for name in (SCORES, EMBEDDINGS) if name in own}
    for gamma in (1.0, *GAMMAS):
        generator, smallest, against_model = np.random.default_rng(2), [], []
        for _ in range(DRAWS):
            first = generator.permutation(min(EXPOSED, total))[:week]
            others = np.setdiff1d(np.arange(total), first)
            here = part(gamma, first)
            there = part(1.0, generator.permutation(others)[:reference])
            tests = compare(here, there, RATES[0])
            smallest.append(min(test.adjusted for test in tests if test.adjusted is not None))
            if gamma == 1:
                tests = compare(here, own, RATES[0])
                against_model.append([test.adjusted for test in tests if test.p is not None])
        for rate in RATES:
            row = {"what": f"alarms at rate {rate}, {week} against {reference} films"}
            row["what"] += ", same exposure" if gamma == 1 else f", exposure to the power {gamma}"
            yield {**row, "value": int((np.array(smallest) <= rate).sum()), "of": DRAWS}
        if against_model:
            low = (np.array(against_model) <= RATES[0]).sum(axis=0)
            names = "scores, embeddings"
            what = f"alarms at rate {RATES[0]} against the model itself, {names}"
            yield {"what": what, "value": " and ".join(map(str, low)), "of": DRAWS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("manifest")
    parser.add_argument("--kept", default="", help="file that scores and features are kept in")
    parser.add_argument("--limit", type=int, default=2000, help="normal films at the most")
    options = parser.parse_args()
    if options.kept and Path(options.kept).exists():
        made = dict(np.load(options.kept))
    else:
        made = scored(options.model, options.manifest, options.limit)
        if options.kept:
            np.savez(options.kept, **made)
    for row in itertools.chain(of_threshold(made["score 1.0"]), of_watch(made, options.model)):
        print(f"{row['what']}: {row['value']} of {row['of']}", flush=True)


if __name__ == "__main__":
    main()
