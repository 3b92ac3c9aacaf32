"""Writes an exported model only where it gives the detector's own scores and flags."""

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from selftaught import __version__
from selftaught.data.images.decode import read_grey
from selftaught.data.images.masks import read_mask
from selftaught.detector import Detector
from selftaught.errors import InputError
from selftaught.export import contents, graph, runtime
from selftaught.files import machine_errors, write_atomic
from selftaught.models.films import as_trained

IMAGES = 256
TOGETHER = 16  # films in memory


@dataclass(frozen=True)
class Films:
    """Files that the exported model is compared on.

    Attributes:
        paths: of images, raw or of prepared sets.
        masks: for each its mask or None; None: none are given.
        body_parts: for each, "" where unknown.
        origin: what they are, for the output.
    """

    paths: Sequence[Path]
    masks: Sequence[Path | None] | None
    body_parts: Sequence[str]
    origin: str


def export(detector: Detector, model: Path, out: Path, films: Films) -> dict[str, Any]:
    """Write a detector as one file.

    Args:
        detector: on the CPU.
        model: its folder.
        out: an .onnx or .pt2 file.
        films: what it is compared on; those that cannot be read are left out.

    Returns:
        The facts that the file holds.

    Raises:
        InputError: the model cannot be traced, no film can be read, or a score, percentile,
            p-value or flag differs; nothing is written.
        MachineError: the disk is full.
    """
    traced = graph.traced(detector)
    content = (graph.as_onnx if out.suffix == ".onnx" else graph.as_program)(traced)
    facts = _facts(detector, model, traced)

    def write(path: Path) -> None:
        """The file, sealed with the facts so far."""
        digest = ""
        for _ in range(2):  # all but the facts is the same both times
            graph.write(path, content, json.dumps(contents.sealed(facts, digest)))
            digest = contents.split(path, path.read_bytes())[0]

    with tempfile.TemporaryDirectory() as folder, machine_errors(Path(folder)):
        path = Path(folder) / f"model{out.suffix}"
        write(path)
        exported = runtime.Exported.load(path)
        facts["spread"], facts["compared"] = compare(detector, exported, films)
        facts["golden"] = golden(exported, detector.image_size)
        write(path)
        runtime.verify(path)
        write_atomic(out, path.read_bytes())
    return facts


def _facts(detector: Detector, model: Path, traced: graph.Traced) -> dict[str, Any]:
    return {
        "format": contents.FORMAT,
        "version": __version__,
        "torch": torch.__version__,
        "method": detector.method,
        # It holds the checksums of all other files of the model.
        "model": hashlib.sha256((model / "model.json").read_bytes()).hexdigest(),
        "score_by": detector.by,
        "image_size": detector.image_size,
        "preprocessing": detector.preprocessing.facts(),
        "calibration": detector.calibration.facts(),
        "inputs": traced.inputs,
        "outputs": traced.outputs,
        "spread": 0.0,
        "compared": {},
        "golden": [],
    }


def compare(
    detector: Detector, exported: runtime.Exported, films: Films
) -> tuple[float, dict[str, Any]]:
    """Compare the file with the detector, from the same image files on.

    Returns:
        Standard deviation of the detector's scores, and what was compared, with the figures.

    Raises:
        InputError: no film can be read, or one differs; names the first.
    """
    table = detector.explain(
        films.paths, masks=films.masks, body_parts=films.body_parts, bad_files="skip"
    )
    rows = np.flatnonzero((table.pop("problem") == "").to_numpy())
    if not len(rows):
        raise InputError(f"{films.origin}: none of {len(table)} images can be read")
    wanted = table.iloc[rows].reset_index(drop=True)
    made = pd.DataFrame(_scored(detector, exported, films, rows))
    spread = float(wanted["score"].std(ddof=0))
    largest = 0.0
    for name in made.columns.difference([*runtime.MEANINGS, "flagged"], sort=False):
        one, other = made[name].to_numpy(), wanted[name].to_numpy()
        if one.dtype.kind == "f":
            far = _differences(one, other, float(other.std()))
            allowed = runtime.TOLERANCE
        else:
            far, allowed = (one != other).astype(float), 0.0
        if (far > allowed).any():
            worst = int(np.argmax(far))
            raise InputError(
                f"not exported: {wanted['path'].iloc[worst]} has {name} {one[worst]:.7g} in the "
                f"file and {other[worst]:.7g} in the model; allowed: a relative difference of "
                f"{allowed:g}"
            )
        if name == "score":
            largest = float(far.max())
    _check_meaning(detector, made, wanted, spread)
    flagged = wanted["flagged"]
    return spread, {
        "images": len(rows),
        "origin": films.origin,
        "largest_difference": largest,
        "flagged": None if flagged.isna().all() else int(flagged.sum()),
    }


def _differences(made: np.ndarray, wanted: np.ndarray, spread: float) -> np.ndarray:
    pairs = zip(made, wanted, strict=True)
    return np.array([runtime.difference(one, other, spread) for one, other in pairs])


def _check_meaning(
    detector: Detector, made: pd.DataFrame, wanted: pd.DataFrame, spread: float
) -> None:
    """Refuse percentiles, p-values and flags other than the detector's.

    A score that equals the threshold, or a normal one, but for rounding, counts as equal to it:
    which side it falls on in the detector is chance.
    """
    scores, calibration = wanted["score"].to_numpy(np.float64), detector.calibration
    near = runtime.TOLERANCE * np.maximum(np.abs(scores), spread)
    checked = []
    for name, of in (("percentile", calibration.percentiles), ("p_value", calibration.p_values)):
        low, high = np.sort([of(scores + side * near) for side in (-1, 1)], axis=0)
        given = made[name].to_numpy(np.float64)
        off = 1e-5 * high
        wrong = ~((low - off <= given) & (given <= high + off)) & ~np.isnan(low)
        checked.append((name, wrong, given))
    flags = wanted["flagged"].to_numpy(np.float64, na_value=-1)
    if calibration.threshold is not None:
        slack = graph.slack(np.float64(calibration.threshold), calibration)
        tied = np.abs(scores - calibration.threshold) <= slack
        flags[tied] = 0
    given = made["flagged"].to_numpy(np.float64, na_value=-1)
    for name, bad, value in (*checked, ("flagged", given != flags, given)):
        if bad.any():
            row = int(np.argmax(bad))
            raise InputError(
                f"not exported: {wanted['path'].iloc[row]} has {name} {value[row]:g} in the file "
                f"and {wanted[name].iloc[row]} in the model; allowed: the same"
            )


def _scored(
    detector: Detector, exported: runtime.Exported, films: Films, rows: np.ndarray
) -> list[dict[str, Any]]:
    """What the file makes of films as they are before the network's view."""
    ready = as_trained(films.paths, films.masks, films.body_parts, detector.preprocessing)
    made: list[dict[str, Any]] = []
    for part in np.array_split(rows, -(-len(rows) // TOGETHER)):
        images, masks = [], []
        for row in part.tolist():
            sample = None if ready.made is None else ready.made(row)
            if sample is not None:
                image, mask = sample.image, sample.mask
            else:
                image, path = read_grey(films.paths[row]), films.paths[row]
                cover = None if ready.masks is None else ready.masks[row]
                mask = None if cover is None else read_mask(cover, path, image.shape)
            images.append(image)
            masks.append(mask)
        masked = "masks" in exported.facts["inputs"]
        made += exported.score(images, masks if masked else None, prepared=True)
    return made


def golden(exported: runtime.Exported, size: int) -> list[dict[str, Any]]:
    """Generated films of both depths, larger and smaller than the input, and their outputs."""
    generator = np.random.default_rng(0)
    shapes = [(2 * size + 3, size + 5), (3 * size // 2, 2 * size), (size // 2 + 1, size // 3 + 2)]
    made = []
    for shape, kind in zip(shapes, (np.uint8, np.uint16, np.uint8), strict=True):
        white = 255 if kind is np.uint8 else 65535
        y, x = (np.arange(side) / side for side in shape)
        waves = np.zeros(shape)
        for a, b in generator.uniform(1, 7, (6, 2)):
            waves += generator.normal() * np.outer(np.cos(3 * a * y + b), np.cos(3 * b * x + a))
        waves = (waves - waves.min()) / (waves.max() - waves.min())
        film = np.rint(waves * white).astype(kind)
        mask = np.where(np.hypot(y[:, None] - 0.5, x - 0.5) < 0.4, 255, 0).astype(np.uint8)
        masks = [mask] if "masks" in exported.facts["inputs"] else None
        entry = {"film": contents.packed(film)}
        if masks:
            entry["mask"] = contents.packed(mask)
        entry["outputs"] = exported.score([film], masks, prepared=True)[0]
        made.append(entry)
    return made
