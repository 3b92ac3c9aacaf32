"""The MURA-v1.1 tree as a manifest (Rajpurkar et al. 2018; users bring their own copy).

Layout: `{train,valid}/XR_<PART>/patient<5 digits>/study<k>_{positive|negative}/image<k>.png`, with
lists `{train,valid}_image_paths.csv` that have a header line in some copies and none in others.
The official split is dropped: the paper draws its own from all images.
"""

import re
from pathlib import Path

from selftaught.data.manifest.check import show
from selftaught.data.manifest.films import list_films
from selftaught.data.manifest.read import Source, csv_columns
from selftaught.errors import InputError

PARTS = ("train", "valid")
LAYOUT = re.compile(
    r"(?P<path>(?:train|valid)/XR_(?P<part>[A-Z]+)/(?P<patient>patient[0-9]+)/"
    r"(?P<study>study[0-9]+)_(?P<sign>positive|negative)/[^/]+\.(?:png|jpe?g))",
    re.IGNORECASE,  # copies by way of other systems have names in other cases
)


def is_mura(folder: Path) -> bool:
    """Whether `folder` holds MURA's image lists or its train and valid trees."""
    try:
        if any((folder / f"{part}_image_paths.csv").is_file() for part in PARTS):
            return True
        bones = [bone.name.upper() for part in _parts(folder) for bone in (folder / part).iterdir()]
    except PermissionError:
        return False
    return any(name.startswith("XR_") for name in bones)


def _parts(folder: Path) -> list[str]:
    """The names of MURA's own folders as they are on the disk."""
    return sorted(
        entry.name for entry in folder.iterdir() if entry.name.lower() in PARTS and entry.is_dir()
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
            body_part, patient, study = (
                match[name].lower() for name in ("part", "patient", "study")
            )
            columns["path"].append(match["path"])
            columns["label"].append("1" if match["sign"].lower() == "positive" else "0")
            columns["patient"].append(patient)
            columns["study"].append(f"{patient}/{body_part}/{study}")
            columns["body_part"].append(body_part)
    if not columns["path"]:
        raise InputError(f"{folder}: no image is listed; allowed: the MURA-v1.1 folder")
    return Source(folder, columns, folder.name, None)


def _image_lines(folder: Path, part: str) -> list[tuple[str, str]]:
    """(where, path) of every image of one official set, from its list or else from its tree."""
    path = folder / f"{part}_image_paths.csv"
    if not path.is_file():
        return _tree_lines(folder, [name for name in _parts(folder) if name.lower() == part])
    columns, rows = csv_columns(path)
    lines = [(f"{path.name} row {row}", line) for row, line in zip(rows, columns[0], strict=True)]
    has_header = "/" not in lines[0][1]
    return lines[1:] if has_header else lines


def _tree_lines(folder: Path, parts: list[str]) -> list[tuple[str, str]]:
    lines = []
    for part in parts:
        films = list_films(folder, part)
        places = {name: name.count("/") == 4 for name in films.paths}
        if elsewhere := [name for name, right in places.items() if not right]:
            films.left_out["outside the folders of studies"] = elsewhere
        films.warn(folder.name)
        lines += [(folder.name, name) for name, right in places.items() if right]
    return lines


def _below(line: str, part: str) -> str:
    """The path from `train/` or `valid/` on; lists start with the name of the tree's folder."""
    first, _, rest = line.partition("/")
    return line if first.lower() == part else rest
