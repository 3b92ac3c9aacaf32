"""A folder of maps: each film with its heat, and a table of the hottest places.

```
DIR/
    settings.json   the model's tensors, scale and films that the maps are of
    000000.png      a film in its own pixels with its heat, by the film's row
    maps.csv        path, map, score, percentile, flagged, heat (1 = the scale's top, not cut off),
                    x, y of the hottest pixel of the film; with skipped films also problem
```
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pandas as pd
import torch

from selftaught.errors import InputError
from selftaught.files import claim_folder, write_atomic
from selftaught.maps.heat import Method
from selftaught.maps.overlay import film_of, on_film, overlay
from selftaught.maps.scale import NO_SCALE

if TYPE_CHECKING:
    from selftaught.detector import BadFiles, Detector

SETTINGS, TABLE = "settings.json", "maps.csv"
BATCH = 16


def claim_maps(out: Path, detector: "Detector", method: Method, films: str) -> None:
    """Make a folder one of the maps of these films on this scale, or go on with it.

    Args:
        out: the folder.
        detector: with a scale of the method.
        method: of the maps.
        films: what tells the list of films from others, such as its digest.

    Raises:
        InputError: there is no scale; or the folder holds something else.
    """
    if method not in detector.scales:
        raise InputError(f"maps: {NO_SCALE}")
    facts = {"list": films, **asdict(detector.scales[method])}
    claim_folder(out, SETTINGS, facts, "a folder of the same maps")


def write_maps(
    out: Path,
    detector: "Detector",
    table: pd.DataFrame,
    root: Path,
    *,
    method: Method,
    bad_files: "BadFiles" = "fail",
    progress: Callable[[int], object] = lambda count: None,
) -> pd.DataFrame:
    """Write the maps of films into a claimed folder, but not yet its table.

    Args:
        out: of `claim_maps`.
        detector: with a scale of the method.
        table: rows of films with `path`, `mask` ("" = none) and `body_part`; a row's index is the
            number of its map.
        root: folder that the paths are relative to.
        method: of the maps.
        bad_files: as for `Detector.score`.
        progress: called with the number of films that are done.

    Returns:
        The rows of `maps.csv`, with the index of `table`.

    Raises:
        InputError: a film cannot be read, and such are not skipped.
        MachineError: the disk is full.
    """
    parts = []
    for start in range(0, len(table), BATCH):
        rows = table.iloc[start : start + BATCH]
        given: Any = films_of(detector, rows, root)
        raw = detector.maps(**given, bad_files=bad_files, method=method, scaled=False)
        part = detector.explain(**given, bad_files=bad_files).set_index(rows.index)
        part["path"] = rows["path"]
        places = [
            _write_map(
                out, number, root / row["path"], str(row["body_part"]), heat, detector, method
            )
            for (number, row), heat in zip(rows.iterrows(), raw, strict=True)
        ]
        part[["map", "heat", "x", "y"]] = pd.DataFrame(places, rows.index).astype(
            {"heat": "float32", "x": "Int64", "y": "Int64"}
        )
        kept = ["path", "map", "score", "percentile", "flagged", "heat", "x", "y", "problem"]
        parts.append(part[[name for name in kept if name in part]])
        progress(min(start + BATCH, len(table)))
    return pd.concat(parts) if parts else pd.DataFrame(columns=["path", "map"])


def write_table(out: Path, maps: pd.DataFrame) -> Path:
    """Write `maps.csv`, last of all."""
    write_atomic(out / TABLE, lambda path: maps.to_csv(path, index=False))
    return out / TABLE


def films_of(detector: "Detector", rows: pd.DataFrame, root: Path) -> dict[str, object]:
    """Arguments of `Detector.score` for rows of a manifest."""
    masks: Sequence[Path | None] = [root / name if name else None for name in rows["mask"]]
    films = detector.preprocessing
    return {
        "images": [root / path for path in rows["path"]],
        "masks": masks if any(masks) and (films.masked or not films.known) else None,
        "body_parts": list(rows["body_part"]),
    }


def _write_map(
    out: Path,
    number: object,
    path: Path,
    body_part: str,
    raw: torch.Tensor,
    detector: "Detector",
    method: Method,
) -> dict[str, object]:
    """Write one map; its row of the table."""
    if raw.isnan().any():  # skipped
        return {"map": "", "heat": np.nan, "x": pd.NA, "y": pd.NA}
    film, cut = film_of(path, detector.preprocessing, body_part)
    scale = detector.scales[method]
    name = f"{number:06d}.png"
    picture = overlay(film, scale(raw).numpy(), cut)
    write_atomic(out / name, bytes(cv2.imencode(".png", picture[..., ::-1])[1]))
    placed = on_film(raw.numpy(), film.shape, cut)
    y, x = np.unravel_index(int(placed.argmax()), placed.shape)
    heat = scale.share(raw.max())
    return {"map": name, "heat": float(heat), "x": int(x), "y": int(y)}
