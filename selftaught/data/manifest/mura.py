"""The MURA-v1.1 tree as a manifest (Rajpurkar et al. 2018; users bring their own copy).

Layout: `{train,valid}/XR_<PART>/patient<5 digits>/study<k>_{positive|negative}/image<k>.png`, with
lists `{train,valid}_image_paths.csv` that have a header line in some copies and none in others.
The official split is dropped: the paper draws its own from all images.
"""

import re
from pathlib import Path

from selftaught.data.manifest.check import show
from selftaught.data.manifest.read import Source, csv_columns, list_files
from selftaught.errors import InputError

PARTS = ("train", "valid")
LAYOUT = re.compile(
    r"(?P<path>(?:train|valid)/XR_(?P<part>[A-Z]+)/(?P<patient>patient\d+)/"
    r"(?P<study>study\d+)_(?P<sign>positive|negative)/[^/]+\.(?:png|jpe?g))"
)


def is_mura(folder: Path) -> bool:
    """Whether `folder` holds MURA's image lists or its train and valid trees."""
    return any(
        (folder / f"{part}_image_paths.csv").is_file() or any(folder.glob(f"{part}/XR_*"))
        for part in PARTS
    )


def read_mura(folder: Path) -> Source:
    """Read MURA's image lists, or the tree itself where a list is missing.

    Args:
        folder: the MURA-v1.1 folder.

    Returns:
        Cells `path` (relative to `folder`), `label` (1 where the study is positive), `patient`,
        `study` (patient/part/study, as study names repeat) and `body_part` (lower case).

    Raises:
        InputError: a listed path is not of MURA's layout; names list and row.
    """
    names = ("path", "label", "patient", "study", "body_part")
    columns: dict[str, list[str]] = {name: [] for name in names}
    for part in PARTS:
        for where, line in _image_lines(folder, part):
            match = LAYOUT.fullmatch(_below(line, part))
            if match is None:
                raise InputError(
                    f"{where}: path is {show(line)}; allowed: "
                    f"{part}/XR_PART/patientN/studyK_positive|negative/IMAGE.png"
                )
            body_part = match["part"].lower()
            columns["path"].append(match["path"])
            columns["label"].append("1" if match["sign"] == "positive" else "0")
            columns["patient"].append(match["patient"])
            columns["study"].append(f"{match['patient']}/{body_part}/{match['study']}")
            columns["body_part"].append(body_part)
    if not columns["path"]:
        raise InputError(f"{folder}: no image is listed; allowed: the MURA-v1.1 folder")
    return Source(folder, columns, folder.name, None)


def _image_lines(folder: Path, part: str) -> list[tuple[str, str]]:
    """(where, path) of every image of one official set, from its list or else from its tree."""
    path = folder / f"{part}_image_paths.csv"
    if not path.is_file():
        names = [name for name in list_files(folder, part) if name.count("/") == 4]
        return [(folder.name, name) for name in names]
    columns, rows = csv_columns(path)
    lines = [(f"{path.name} row {row}", line) for row, line in zip(rows, columns[0], strict=True)]
    has_header = "/" not in lines[0][1]
    return lines[1:] if has_header else lines


def _below(line: str, part: str) -> str:
    """The path from `train/` or `valid/` on; lists start with the name of the tree's folder."""
    first, _, rest = line.partition("/")
    return line if first == part else rest
