"""Write a labelled set of synthetic radiographs with its ground truth."""

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from selftaught.files import machine_errors, write_atomic
from selftaught.phantoms.anatomy import BODY_PARTS
from selftaught.phantoms.anomalies import KINDS
from selftaught.phantoms.cohort import Entry, plan
from selftaught.phantoms.export import encode
from selftaught.phantoms.folder import (
    SetConfig,
    check_config,
    claim,
    format_of,
    last_list,
    paths_of,
)
from selftaught.phantoms.radiograph import NORMAL, radiograph
from selftaught.workers import available_cores, work_side_by_side

CHUNK = 8
Progress = Callable[[int, int], None]
Record = dict[str, Any]


def write_set(
    out: Path,
    images: int,
    *,
    seed: int = 1,
    size: int = 512,
    abnormal_fraction: float = 0.4,
    severity: float = 0.6,
    clutter: bool = True,
    formats: Sequence[str] = ("png8",),
    body_parts: Sequence[str] = BODY_PARTS,
    kinds: Sequence[str] = KINDS,
    layout: str = "manifest",
    workers: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a set; the files do not depend on `workers`.

    Layout "manifest": `manifest.csv` (path, label, patient, study, body_part, mask, kind, view),
    `images/`, `masks/` (body, 0 or 255). Layout "mura": the tree and the four lists of MURA-v1.1
    under `MURA-v1.1/`, `masks/` beside it. Both: `truth/bones/` and `truth/anomalies/` (masks) and
    `truth.json` with, for every image, kind, view, polarity, film corners and anomaly boxes in
    pixels. The lists are written last, so a folder that has them is complete.

    Args:
        out: folder to create; the same set, begun there before, is finished, and left alone
            where it is complete.
        images: how many, at least 1.
        seed: number of the set.
        size: longer side in pixels.
        abnormal_fraction: share of abnormal studies, 0 to 1.
        severity: 0 (barely visible) to 1.
        clutter: films as they come from the reader (rotated on a page, frames, letters,
            collimation, a tenth inverted); False: upright films that fill the picture.
        formats: one or more of `FORMATS`, mixed at random.
        body_parts: which parts to draw from.
        kinds: which anomalies to draw from.
        layout: "manifest" or "mura".
        workers: processes; None takes one per core, and one for small sets.
        progress: called with (images done, images wanted).

    Returns:
        The manifest, or the MURA-v1.1 folder.

    Raises:
        InputError: an option is out of range, or `out` holds something else or another set.
        MachineError: the disk is full, or a worker was killed.
    """
    config = SetConfig(
        images=images,
        seed=seed,
        size=size,
        abnormal_fraction=abnormal_fraction,
        severity=severity,
        clutter=clutter,
        formats=tuple(formats),
        body_parts=tuple(body_parts),
        kinds=tuple(kinds),
        layout=layout,
    )
    check_config(config)
    out = Path(out)
    if claim(out, config):
        return _place(out, config)
    entries = plan(seed, images, config.body_parts, abnormal_fraction, config.kinds)
    for folder in {path.parent for entry in entries for path in paths_of(out, config, entry)}:
        folder.mkdir(parents=True, exist_ok=True)
    if workers is None:
        workers = min(available_cores(), max(1, images // 64))
    chunks = [entries[start : start + CHUNK] for start in range(0, images, CHUNK)]
    work = work_side_by_side(
        _write_chunk,
        [(out, config, chunk) for chunk in chunks],
        workers=workers,
        folder=out,
        remedy="run it again with fewer workers or a smaller size",
    )
    records: list[Record] = []
    with closing(work) as finished:
        for _, done in finished:
            records += done
            if progress is not None:
                progress(len(records), images)
    records.sort(key=lambda record: record["index"])
    return _write_lists(out, config, records)


def _write_chunk(out: Path, config: SetConfig, chunk: Iterable[Entry]) -> list[Record]:
    """Draw and write some pictures."""
    return [_write_one(out, config, entry) for entry in chunk]


def _write_one(out: Path, config: SetConfig, entry: Entry) -> Record:
    """Draw and write one picture with its masks."""
    drawn = radiograph(
        config.seed,
        entry.index,
        size=config.size,
        body_part=entry.body_part,
        kind=entry.kind,
        severity=config.severity,
        clutter=config.clutter,
        patient=entry.patient,
        study=entry.study,
    )
    image, mask, bones, anomaly = paths_of(out, config, entry)
    name = format_of(config, entry)
    with machine_errors(image):
        image.write_bytes(encode(drawn.image, name))
        for path, content in ((mask, drawn.body_mask), (bones, drawn.bone_mask)):
            _write_mask(path, content)
        if entry.kind != NORMAL:
            _write_mask(anomaly, drawn.anomaly_mask)
    patient = f"patient{entry.patient:05d}"
    relative = {"path": image, "mask": mask, "bone_mask": bones, "anomaly_mask": anomaly}
    if entry.kind == NORMAL:
        del relative["anomaly_mask"]
    return {
        **{key: path.relative_to(out).as_posix() for key, path in relative.items()},
        "index": entry.index,
        "label": entry.label,
        "patient": patient,
        "study": f"{patient}_{entry.body_part}_study{entry.study_of_part}",
        "body_part": entry.body_part,
        "kind": drawn.kind,
        "view": drawn.view,
        "format": name,
        "inverted": drawn.inverted,
        "height": drawn.image.shape[0],
        "width": drawn.image.shape[1],
        "quad": [[round(float(value), 3) for value in corner] for corner in drawn.quad],
        "boxes": [list(box) for box in drawn.boxes],
    }


def _write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a bool mask as a PNG of 0 and 255."""
    path.write_bytes(bytes(cv2.imencode(".png", mask.astype(np.uint8) * 255)[1]))


def _place(out: Path, config: SetConfig) -> Path:
    """What a reader is given: the manifest, or the folder of the tree."""
    last = last_list(out, config)
    return last if config.layout == "manifest" else last.parent


def _write_lists(out: Path, config: SetConfig, records: list[Record]) -> Path:
    """Write truth.json and the lists that make the set readable."""
    import pandas as pd  # Here alone, and not in processes that draw: it takes half a second.

    truth = {"settings": asdict(config), "images": records}
    write_atomic(out / "truth.json", json.dumps(truth, indent=1) + "\n")
    table = pd.DataFrame(records)
    if config.layout == "manifest":
        columns = ["path", "label", "patient", "study", "body_part", "mask", "kind", "view"]
        write_atomic(out / "manifest.csv", table[columns].to_csv(index=False, lineterminator="\n"))
        return _place(out, config)
    root = _place(out, config)
    for part in ("train", "valid"):
        rows = table[table["path"].str.startswith(f"MURA-v1.1/{part}/")]
        folders = rows["path"].str.replace(r"[^/]*$", "", regex=True)  # rpartition wants rows
        studies = (folders + "," + rows["label"].astype(str)).unique()
        for name, lines in (("image_paths", rows["path"]), ("labeled_studies", studies)):
            write_atomic(root / f"{part}_{name}.csv", "".join(f"{line}\n" for line in lines))
    return root
