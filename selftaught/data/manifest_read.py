"""The cells of a manifest as text, before any of them is judged."""

import csv
import io
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from selftaught.data.manifest_check import COLUMNS, show
from selftaught.errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom")


class Source(NamedTuple):
    """What was read: the folder of the paths, the cells, and how to name a row.

    Attributes:
        root: absolute folder that paths are relative to.
        columns: cells as text by column name, all of one length, `path` always among them.
        name: what messages call the source.
        rows: (N,) row numbers as a spreadsheet shows them, or None if there are no rows.
    """

    root: Path
    columns: dict[str, list[str]]
    name: str
    rows: np.ndarray | None


def read_text(path: Path) -> str:
    """Decode a UTF-8 file, with or without a byte order mark.

    Raises:
        InputError: the file cannot be read, is not UTF-8 or holds a NUL; names the row.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path.name}: cannot be read: {error.strerror}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path.name} row {row}: byte 0x{data[error.start]:02x} is not UTF-8; allowed: UTF-8 "
            'text (in a spreadsheet: save as "CSV UTF-8")'
        ) from error
    if "\0" in text:
        row = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{path.name} row {row}: holds a NUL character; allowed: UTF-8 text")
    return text


def csv_records(path: Path) -> tuple[list[list[str]], np.ndarray]:
    """All records of a CSV file and their row numbers; rows with only blank cells are dropped.

    Raises:
        InputError: the file is not UTF-8, a quote is never closed, or a cell is too long.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    records: list[list[str]] = []
    try:
        records.extend(reader)
    except csv.Error as error:
        raise InputError(f"{path.name} row {len(records) + 1}: not valid CSV: {error}") from error
    kept = [row for row, record in enumerate(records) if any(record)]
    return [records[row] for row in kept], np.array(kept, np.int64) + 1


def read_csv(path: Path) -> Source:
    """Read a CSV manifest; cells stay text and are never evaluated.

    Raises:
        InputError: no header, no rows, or a row with more or fewer cells than the header.
    """
    records, rows = csv_records(path)
    if not records:
        raise InputError(
            f'{path.name}: empty; allowed: a header with "path", then one row an image'
        )
    header = records[0]
    width = len(header)
    for record, row in zip(records, rows, strict=True):
        if len(record) != width:
            raise InputError(f"{path.name} row {row}: {len(record)} cells; the header has {width}")
    cells = [list(column) for column in zip(*records[1:], strict=True)] or [[] for _ in header]
    columns = list(zip(header, cells, strict=True))
    columns = [(name, column) for name, column in columns if name or any(column)]
    check_header([name for name, _ in columns], path.name)
    return _source(path, dict(columns), rows[1:])


def read_parquet(path: Path) -> Source:
    """Read a parquet manifest; whole numbers, decimals and missing values become text.

    Raises:
        InputError: pyarrow cannot read the file, or it has no `path` column or no rows.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with path.open("rb") as handle:
            frame = pyarrow.parquet.read_table(handle).to_pandas(ignore_metadata=True)
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path.name}: cannot be read as parquet: {reason}") from error
    names = [str(name) for name in frame.columns]
    check_header(names, path.name)
    columns = {
        name: _as_text(frame.iloc[:, position], name, path.name)
        for position, name in enumerate(names)
    }
    return _source(path, columns, np.arange(len(frame), dtype=np.int64) + 2)


def _as_text(cells: pd.Series, column: str, name: str) -> list[str]:
    texts = ["" if blank else str(cell) for cell, blank in zip(cells, cells.isna(), strict=True)]
    for index, text in enumerate(texts):
        if "\0" in text:
            raise InputError(f"{name} row {index + 2}: {column} holds a NUL character")
    return texts


def _source(path: Path, columns: dict[str, list[str]], rows: np.ndarray) -> Source:
    if not len(rows):
        raise InputError(f"{path.name}: no rows below the header; allowed: one row an image")
    return Source(path.parent, columns, path.name, rows)


def check_header(names: list[str], name: str) -> None:
    """Refuse a header without `path`, with a name twice, or with a known name misspelt.

    Raises:
        InputError: see above; a column "Label" would otherwise leave every label blank.
    """
    for column in names:
        if names.count(column) > 1:
            raise InputError(f"{name} row 1: column {show(column)} appears twice")
        plain = column.strip().lower()
        if plain in COLUMNS and column != plain:
            raise InputError(f"{name} row 1: column {show(column)}; write it as {show(plain)}")
    if "path" not in names:
        found = ", ".join(show(column) for column in names[:20]) or "none"
        raise InputError(
            f'{name} row 1: no column "path"; found: {found}; allowed: comma-separated columns'
        )


def read_image_folder(folder: Path) -> Source:
    """Read a folder with `normal/` and `abnormal/`, each searched through all its folders.

    Raises:
        InputError: `normal/` is missing, or a class holds a file that is no known image type.
    """
    paths: list[str] = []
    labels: list[str] = []
    if not (folder / "normal").is_dir():
        raise InputError(
            f"{folder}: no manifest; allowed: manifest.csv, folders normal/ and abnormal/, or "
            "the MURA-v1.1 folder"
        )
    for label, kind in (("0", "normal"), ("1", "abnormal")):
        found = list_files(folder, kind)
        for path in found:
            if not path.lower().endswith(IMAGE_SUFFIXES):
                raise InputError(
                    f"{folder.name}, {show(path)}: not an image type; allowed: "
                    f"{', '.join(IMAGE_SUFFIXES)}"
                )
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise InputError(f"{folder}: normal/ and abnormal/ hold no image")
    return Source(folder, {"path": paths, "label": labels}, folder.name, None)


def list_files(root: Path, under: str) -> list[str]:
    """Sorted posix paths, relative to `root`, of the files below `under`; hidden ones left out."""
    found = []
    for folder, folders, names in os.walk(root / under):
        folders[:] = [name for name in folders if not name.startswith(".")]
        place = Path(folder).relative_to(root).as_posix()
        found += [f"{place}/{name}" for name in names if not name.startswith(".")]
    return sorted(found)
