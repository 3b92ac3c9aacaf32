"""Reads an exported model, checks it and scores films: NumPy and onnxruntime, without torch.

`python -m selftaught.export.runtime FILE` checks a file, as `selftaught verify FILE` does. A
.pt2 file needs torch, and runs as code: open such only from people you trust.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from selftaught.errors import InputError
from selftaught.export.contents import read_facts, unpacked

TOLERANCE = 1e-4  # of a score, or of the spread of scores where that is more
LARGEST = (1 << 31) - 1  # bytes of a protobuf
MEANINGS = {"percentile", "p_value"}  # of a score; files of before lack the second
PIXELS = 1 << 24  # of films that are scored together, where there is more than one
Array: TypeAlias = np.ndarray
Columns: TypeAlias = dict[str, Array]
Run: TypeAlias = Callable[[Array, Array, Array | None], Columns]


class Exported:
    """An exported model, checked against its own checksums.

    Attributes:
        path: of the file.
        facts: what the export stored: method, version, hash of the model, preprocessing,
            threshold, normal scores, golden films and their outputs.
        needs: one line, what films must have been through before `score`; "" = nothing.
    """

    def __init__(self, path: Path, facts: dict[str, Any], run: Run) -> None:
        self.path, self.facts, self._run = path, facts, run
        self.needs = _needs(facts["preprocessing"])

    @classmethod
    def load(cls, path: str | Path) -> "Exported":
        """Read a file that `selftaught export` wrote.

        Raises:
            InputError: it is missing, damaged, altered, or none of ours.
        """
        path = Path(path)
        facts = read_facts(path)
        return cls(path, facts, (_onnx if path.suffix == ".onnx" else _program)(path, facts))

    def score(
        self,
        films: Sequence[Array],
        masks: Sequence[Array | None] | None = None,
        *,
        prepared: bool = False,
    ) -> list[dict[str, Any]]:
        """Scores of films as they were read: brighter = denser, as `read_grey` gives them.

        Args:
            films: (H, W) arrays: uint8; uint16, white at 65535; or floats from 0 to 1, which are
                taken as 16 bits.
            masks: for each film its body mask (H, W), 0 to 255 or bool, None for the whole film;
                for models that were trained with masks.
            prepared: that the films went through what `needs` says.

        Returns:
            For each film `score` (higher = more abnormal), `percentile` (share of normal
            validation films that score no higher, 0 to 100; None if the model has none), `flagged`
            (1 above the threshold, else 0; None without a threshold), `p_value` (conformal, as
            `Calibration.p_values`; None without normal films), and the method's columns.

        Raises:
            InputError: films, masks or their preparation are not such as the model takes.
        """
        if self.needs and not prepared:
            raise InputError(f"{self.path}: {self.needs}")
        ready = [_film(number, film) for number, film in enumerate(films)]
        covers = self._masks(masks, [film.shape for film, _ in ready])
        made: list[dict[str, Any]] = []
        for part in _batches([film.shape for film, _ in ready]):
            films_in = np.stack([ready[number][0] for number in part])
            bits = np.array([ready[number][1] for number in part], np.int64)
            masks_in = None if covers is None else np.stack([covers[number] for number in part])
            made += _rows(self._run(films_in, bits, masks_in))
        return made

    def _masks(
        self, masks: Sequence[Array | None] | None, shapes: Sequence[tuple[int, ...]]
    ) -> list[Array] | None:
        """Masks as the graph takes them; None where it takes none."""
        if "masks" not in self.facts["inputs"]:
            if masks is not None:
                raise InputError("masks: the model was trained without masks; allowed: None")
            return None
        if masks is None:
            raise InputError(
                "masks: none are given, but the model was trained on images multiplied by masks; "
                "allowed: a mask for each film, None for those without"
            )
        if len(masks) != len(shapes):
            raise InputError(f"masks: {len(masks)} for {len(shapes)} films, must be as many")
        made = []
        for number, (mask, shape) in enumerate(zip(masks, shapes, strict=True)):
            mask = np.full(shape, 255, np.uint8) if mask is None else np.asarray(mask)
            mask = mask * np.uint8(255) if mask.dtype == bool else mask
            if mask.dtype != np.uint8 or mask.shape != shape or not mask.any():
                raise InputError(
                    f"mask {number}: {mask.dtype} {mask.shape}; allowed: uint8 or bool of the "
                    f"film's shape {shape}, not empty"
                )
            made.append(mask)
        return made


def _film(number: int, film: Array) -> tuple[Array, int]:
    """A film in 16 bits, and its own bits."""
    film = np.asarray(film)
    where = f"film {number}"
    if film.ndim != 2 or not film.size:
        raise InputError(f"{where}: shape {film.shape}; allowed: (H, W)")
    if film.dtype.kind == "f":
        if not (np.isfinite(film).all() and film.min() >= 0 and film.max() <= 1):
            raise InputError(f"{where}: floats outside 0 to 1; allowed: 0 to 1, or uint8 or uint16")
        film = np.rint(film * 65535.0).astype(np.uint16)
    if film.dtype not in (np.uint8, np.uint16):
        raise InputError(f"{where}: {film.dtype}; allowed: uint8, uint16, or floats from 0 to 1")
    if film.min() == film.max():
        size = f"{film.shape[1]} x {film.shape[0]} pixels"
        raise InputError(f"{where}: shows nothing: {size}, all of level {film.flat[0]}")
    return film.astype(np.uint16), 8 * film.dtype.itemsize


def _batches(shapes: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
    """Numbers of films that follow each other and have one shape."""
    part: list[int] = []
    for number, shape in enumerate(shapes):
        full = (len(part) + 1) * shape[0] * shape[1] > PIXELS
        if part and (full or shape != shapes[part[0]]):
            yield part
            part = []
        part.append(number)
    if part:
        yield part


def _rows(columns: Columns) -> list[dict[str, Any]]:
    """One dict per film; None where the graph has nothing to say."""
    rows = []
    for values in zip(*(one.tolist() for one in columns.values()), strict=True):
        row = dict(zip(columns, values, strict=True))
        row["flagged"] = None if row["flagged"] < 0 else row["flagged"]
        for name in MEANINGS.intersection(row):
            row[name] = None if row[name] != row[name] else row[name]
        rows.append(row)
    return rows


def _needs(films: Mapping[str, Any]) -> str:
    allowed = "allowed: such films, with prepared=True"
    if not films["known"]:
        return f"the model does not say how its films were prepared; {allowed} for films alike"
    if films["prepared"] is None:
        return ""
    settings = " ".join(f"--{name} {value}" for name, value in films["prepared"].items())
    return f"films must have been through `selftaught prepare {settings}` first; {allowed}"


def _onnx(path: Path, facts: Mapping[str, Any]) -> Run:
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(
            f"{path}: needs the package onnxruntime; install it by: pip install onnxruntime"
        ) from error
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # its own kinds, which follow no common one
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: onnxruntime cannot load it: {reason}") from error

    def run(films: Array, bits: Array, masks: Array | None) -> Columns:
        given = {"films": films, "bits": bits} | ({} if masks is None else {"masks": masks})
        made = session.run(facts["outputs"], given)
        return dict(zip(facts["outputs"], map(np.asarray, made), strict=True))

    return run


def _program(path: Path, facts: Mapping[str, Any]) -> Run:
    try:
        import torch
    except ImportError as error:
        raise InputError(f"{path}: needs the package torch; or export to .onnx") from error
    module = torch.export.load(path).module()

    def run(films: Array, bits: Array, masks: Array | None) -> Columns:
        given = [torch.from_numpy(one) for one in (films, bits, masks) if one is not None]
        with torch.inference_mode():
            made = module(*given)
        return {name: made[name].numpy() for name in facts["outputs"]}

    return run


def difference(made: Array, wanted: Array, spread: float) -> float:
    """Largest difference of two columns of scores, relative to the wanted or to their spread.

    The spread, where it is more: a score near 0, such as the logarithm of equal odds, says no
    less than others. Infinite where one is missing and the other not.
    """
    made, wanted = np.asarray(made, np.float64), np.asarray(wanted, np.float64)
    if (np.isnan(made) != np.isnan(wanted)).any():
        return float("inf")
    scale = np.maximum(np.abs(wanted), spread)
    differences = np.abs(made - wanted) / np.where(scale > 0, scale, 1.0)
    return float(np.nanmax(differences, initial=0.0))


def verify(path: str | Path) -> dict[str, Any]:
    """Check a file anywhere: checksums, then its golden films on this machine.

    Returns:
        `films`, how many; `difference`, the largest relative one of their scores.

    Raises:
        InputError: the file is altered, or gives other scores or flags here.
    """
    exported = Exported.load(path)
    golden, spread = exported.facts["golden"], exported.facts["spread"]
    masked = "masks" in exported.facts["inputs"]
    largest = 0.0
    for number, one in enumerate(golden):
        try:
            film = unpacked(one["film"])
            masks = [unpacked(one["mask"])] if masked else None
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: its golden film {number} is damaged") from error
        made = exported.score([film], masks, prepared=True)[0]
        wanted = one["outputs"]
        far = difference(np.array([made["score"]]), np.array([wanted["score"]]), spread)
        largest = max(largest, far)
        if far > TOLERANCE or made["flagged"] != wanted["flagged"]:
            raise InputError(
                f"{path}: gives golden film {number} score {made['score']:.7g}, flagged "
                f"{made['flagged']} here, but {wanted['score']:.7g}, {wanted['flagged']} where it "
                "was written; allowed: a runtime that computes alike"
            )
    return {"films": len(golden), "difference": largest}


def main(arguments: Sequence[str]) -> None:
    """Check one file and print what it is.

    Raises:
        InputError: as `verify`; or other arguments than one file.
    """
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise InputError("usage: selftaught verify FILE, an .onnx or .pt2 file of export")
    path = Path(arguments[0])
    checked = verify(path)
    facts = read_facts(path)
    print(
        f"{path}: method {facts['method']}, model {facts['model'][:12]}, selftaught "
        f"{facts['version']}: checksums fit, {checked['films']} golden films within "
        f"{checked['difference']:.1e} (allowed: {TOLERANCE:g}), no flag changed"
    )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"selftaught: {error}", file=sys.stderr)
        sys.exit(2)
