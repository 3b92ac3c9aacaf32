"""The cells of a manifest as text, before any of them is judged."""

import csv
import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from selftaught.data.manifest.check import COLUMNS, show
from selftaught.data.manifest.spelling import identity
from selftaught.errors import InputError

BLOCK = 2_000


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


def csv_columns(path: Path) -> tuple[list[list[str]], np.ndarray]:
    """The columns of a CSV file as text, header cells first; never evaluated.

    Rows with only blank cells are dropped.

    Returns:
        (columns, rows): equally long columns and the row number of every cell in them.

    Raises:
        InputError: the file is not UTF-8, empty, has a stray quote or a cell that is too long, or
            a row with more or fewer cells than the first one.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    columns: list[list[str]] = []
    rows: list[int] = []
    start = 1
    # In blocks, because a million small lists at once keep the garbage collector busy.
    while block := _next_block(reader, path.name, start):
        numbers = list(range(start, start + len(block)))
        start += len(block)
        if not all(map(any, block)):
            kept = [i for i, record in enumerate(block) if any(record)]
            block, numbers = [block[i] for i in kept], [numbers[i] for i in kept]
        width = len(columns or (block and block[0]))
        for row, record in zip(numbers, block, strict=True):
            if len(record) != width:
                raise InputError(
                    f"{path.name} row {row}: {len(record)} cells; the header has {width}"
                )
        columns = columns or [[] for _ in range(width)]
        for position, cells in enumerate(zip(*block, strict=True)):
            columns[position].extend(cells)
        rows.extend(numbers)
    if not columns:
        raise InputError(f"{path.name}: empty; allowed: a header line, then one row an image")
    return columns, np.array(rows, np.int64)


def _next_block(reader: Iterator[list[str]], name: str, start: int) -> list[list[str]]:
    block: list[list[str]] = []
    try:
        block.extend(islice(reader, BLOCK))
    except csv.Error as error:
        row = start + len(block)
        raise InputError(f"{name} row {row}: not valid CSV: {error}") from error
    return block


def read_csv(path: Path) -> Source:
    """Read a CSV manifest.

    Raises:
        InputError: as `csv_columns` and `check_header`, or no rows.
    """
    cells, rows = csv_columns(path)
    header = [column.pop(0) for column in cells]
    columns = [(name, column) for name, column in zip(header, cells, strict=True)]
    columns = [(name, column) for name, column in columns if name or any(column)]
    check_header([name for name, _ in columns], path.name)
    return _source(path, dict(columns), rows[1:])


def read_parquet(path: Path) -> Source:
    """Read a parquet manifest; numbers, decimals, bytes and missing values become text.

    Whole numbers stay whole beside missing ones: as float64 they would lose digits.

    Raises:
        InputError: pyarrow cannot read the file, or it has no `path` column or no rows.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with path.open("rb") as handle:
            table = pyarrow.parquet.read_table(handle)
        cells = [column.to_pandas(integer_object_nulls=True) for column in table.columns]
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path.name}: cannot be read as parquet: {reason}") from error
    check_header(table.column_names, path.name)
    texts = {
        name: _as_text(column, name, path.name)
        for name, column in zip(table.column_names, cells, strict=True)
    }
    return _source(path, texts, np.arange(table.num_rows, dtype=np.int64) + 2)


def _as_text(cells: pd.Series, column: str, name: str) -> list[str]:
    texts = ["" if blank else _text(cell) for cell, blank in zip(cells, cells.isna(), strict=True)]
    for index, text in enumerate(texts):
        if "\0" in text:
            raise InputError(f"{name} row {index + 2}: {column} holds a NUL character")
    return texts


def _text(cell: object) -> str:
    if not isinstance(cell, bytes):
        return str(cell)
    try:
        return cell.decode()
    except UnicodeDecodeError:
        return cell.hex()


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
        plain = identity(column)
        if plain in COLUMNS and column != plain:
            raise InputError(f"{name} row 1: column {show(column)}; write it as {show(plain)}")
    if "path" not in names:
        listed = ", ".join(show(column) for column in names[:20]) or "none"
        raise InputError(
            f'{name} row 1: no column "path"; found: {listed}; allowed: comma-separated columns'
        )
