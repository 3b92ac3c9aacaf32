"""A database read in parts: an array, a memory-mapped file, or an iterable of arrays."""

from collections.abc import Iterable, Iterator
from typing import TypeGuard

import numpy as np
import torch

from selftaught.search.flat import Array, matrix

Rows = torch.Tensor | Array
Database = Rows | Iterable[Rows]

CHUNK_BYTES = 1 << 30


def is_table(database: Database) -> TypeGuard[Rows]:
    """Whether `database` can be read again and again."""
    return isinstance(database, (torch.Tensor, np.ndarray))


def parts(database: Database, width: int, *, empty: bool = False) -> Iterator[tuple[int, Array]]:
    """Checked parts of a database of at most `CHUNK_BYTES` each, with their first row's number.

    Args:
        database: (N, D) tensor or array, which may be memory-mapped, or an iterable of such.
        width: of the queries.
        empty: accept a database without rows.

    Raises:
        ValueError: no rows, not (N, D) floats, not finite, or of another width than the queries.
    """
    first = 0
    tables: Iterable[Rows] = [database] if is_table(database) else database
    for table in tables:
        if table.ndim != 2 or 0 in table.shape:
            if table.ndim != 2 or not table.shape[1] or (is_table(database) and not empty):
                matrix(table, "database")  # says what is wrong
            continue
        if table.shape[1] != width:
            raise ValueError(
                f"queries: width {width}, must be the database's width {table.shape[1]}"
            )
        rows = max(1, CHUNK_BYTES // table[:1].nbytes)
        for start in range(0, len(table), rows):
            yield first, matrix(table[start : start + rows], "database", first=first)
            first += min(rows, len(table) - start)
    if not first and not empty:
        raise ValueError("database: has no rows, must hold at least 1")
