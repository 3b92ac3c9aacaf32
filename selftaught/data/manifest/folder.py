"""A folder as a list of films: its own `manifest.csv`, its classes, or all films in it."""

import os
from collections import defaultdict
from pathlib import Path

from selftaught.data.manifest.check import show
from selftaught.data.manifest.films import IMAGE_SUFFIXES, Films, is_system, list_films
from selftaught.data.manifest.mura import is_mura
from selftaught.data.manifest.read import Source
from selftaught.data.manifest.spelling import identity
from selftaught.errors import InputError

LABELS = {"normal": "0", "abnormal": "1"}


def own_list(folder: Path) -> Path | None:
    """The `manifest.csv` of a folder, in whatever case; None where there is none.

    Raises:
        InputError: there are several.
    """
    names = [name for name in os.listdir(folder) if name.casefold() == "manifest.csv"]
    names = ["manifest.csv"] if "manifest.csv" in names else names
    if len(names) > 1:
        raise InputError(f"{folder}: holds {show(names[0])} and {show(names[1])}; allowed: one")
    return folder / names[0] if names and (folder / names[0]).is_file() else None


def class_folders(folder: Path) -> dict[str, str]:
    """Label by name of a folder's own `normal` and `abnormal`, in whatever case and with blanks."""
    labels = {name: LABELS.get(identity(name), "") for name in sorted(os.listdir(folder))}
    return {name: label for name, label in labels.items() if label and (folder / name).is_dir()}


def read_classes(folder: Path, labels: dict[str, str]) -> Source:
    """Read the folders of `class_folders`, each searched through all its folders.

    Raises:
        InputError: they hold no image; and as `list_films`.
    """
    paths: list[str] = []
    cells: list[str] = []
    left_out: dict[str, list[str]] = defaultdict(list)
    others = [name for name in os.listdir(folder) if name not in labels and not is_system(name)]
    if others:
        left_out["outside normal/ and abnormal/"] = others
    for name in sorted(labels, key=lambda one: (labels[one], one)):
        films = list_films(folder, name)
        paths += films.paths
        cells += [labels[name]] * len(films.paths)
        for kind, names in films.left_out.items():
            left_out[kind] += names
    return _source(folder, Films(paths, left_out), {"label": cells})


def read_films(folder: Path) -> Source:
    """Read all films below a folder, without labels.

    Raises:
        InputError: there is none, or the MURA tree is one folder further down; as `list_films`.
    """
    for tree in folder.iterdir():
        if tree.is_dir() and is_mura(tree):
            raise InputError(f"{folder}: holds the MURA tree {tree.name}; give {tree}")
    return _source(folder, list_films(folder), {})


def _source(folder: Path, films: Films, columns: dict[str, list[str]]) -> Source:
    films.warn(folder.name)
    if not films.paths:
        raise InputError(
            f"{folder}: holds no image; allowed: {', '.join(IMAGE_SUFFIXES)}, or DICOM of any name"
        )
    return Source(folder, {"path": films.paths, **columns}, folder.name, None)
