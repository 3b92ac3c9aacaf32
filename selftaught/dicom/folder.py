"""A folder of studies in, a folder of results out."""

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selftaught.data.manifest.archive import unpacked
from selftaught.data.manifest.films import is_directory, list_films
from selftaught.dicom.scorer import BATCH, Result, Scorer
from selftaught.errors import InputError
from selftaught.files import machine_errors, write_atomic

if TYPE_CHECKING:
    from pydicom import Dataset

NAME = "results.json"


def keep_quiet() -> None:
    """Nothing that a DICOM library has to say is printed: it may quote a patient's name."""
    warnings.simplefilter("ignore")
    for library in ("pydicom", "pynetdicom", "highdicom"):
        logging.getLogger(library).setLevel(logging.CRITICAL + 1)


def films_in(source: Path) -> tuple[Path, list[str]]:
    """The films of a folder, a DICOMDIR or a ZIP.

    Returns:
        The folder, and the paths below it.

    Raises:
        InputError: it does not exist, is something else or holds none.
    """
    if source.suffix.lower() == ".zip" and source.is_file():
        source = unpacked(source)
    root = source.parent if is_directory(source) else source
    if not root.is_dir():
        raise InputError(
            f"in is {str(source)!r}; allowed: a folder of DICOM files, or a .zip of it"
        )
    paths = list_films(root.absolute()).paths
    if not paths:
        raise InputError(f"{source}: holds no film; allowed: a folder of DICOM files")
    return root, paths


def process(
    scorer: Scorer, source: Path, out: Path, progress: Callable[[int], object] = lambda n: None
) -> dict[str, Any]:
    """Score the films of a folder.

    Objects are named by their own UIDs. One that is there already is the same film's of the same
    model, and is kept.

    Args:
        scorer: of the model.
        source: folder, DICOMDIR or ZIP.
        out: folder for the objects and results.json; made where there is none.
        progress: called with the number of films that are done.

    Returns:
        What results.json holds.

    Raises:
        InputError: as `films_in`; or `out` lies in the source.
        MachineError: the disk failed; the same command goes on.
    """
    root, paths = films_in(source)
    if out.absolute().resolve().is_relative_to(root.absolute().resolve()):
        raise InputError(f"out is {str(out)!r}, within the films' folder; allowed: another folder")
    with machine_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    lines = []
    for start in range(0, len(paths), BATCH):
        names = paths[start : start + BATCH]
        films = [scorer.read(root / name) for name in names]
        for name, result in zip(names, scorer(films), strict=True):
            lines.append(_written(name, result, out))
        progress(len(lines))
    model = scorer.model
    document = {
        "note": "research, not a diagnosis",
        "model": {"sha256" if k == "digest" else k: value for k, value in vars(model).items()},
        "films": lines,
    }
    write_atomic(out / NAME, json.dumps(document, indent=1, allow_nan=False) + "\n")
    return document


def _written(name: str, result: Result, out: Path) -> dict[str, Any]:
    """Write a film's objects; its line of results.json, which names a file only without a UID."""
    files = []
    for one in result.objects:
        path = out / f"{one.SOPInstanceUID}.dcm"
        if not path.exists():
            write_atomic(path, saved(one))
        files.append(path.name)
    facts = result.facts()
    return {**({} if facts["film"] else {"file": name}), **facts, "objects": files}


def saved(one: "Dataset") -> bytes:
    """An object as the bytes of a file."""
    from io import BytesIO

    buffer = BytesIO()
    one.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
