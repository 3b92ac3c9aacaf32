"""Calls of the tiled passes in every combination of options, and their float64 results."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from selftaught.kernels.reference.tiles import TILES as EAGER
from selftaught.kernels.tiles import Classes, Embeddings, Excluded, Side
from tests.kernels.tiles_truth import left_out, weighted

NONE = float("-inf")


class Case(NamedTuple):
    """One call, its tensors in the dtype under test."""

    x: Embeddings
    y: Embeddings
    temperature: Tensor
    excluded: Excluded | None
    row: Side | None = None
    column: Side | None = None
    classes: Classes | None = None


def true_logits(case: Case) -> Tensor:
    return case.x.unit.double() @ case.y.unit.double().T / case.temperature.double()


def masked_logits(case: Case) -> Tensor:
    logits = true_logits(case)
    return logits.masked_fill(left_out(*logits.shape, case.excluded), NONE)


def true_log_sums(case: Case) -> tuple[Tensor, Tensor]:
    logits = masked_logits(case)
    return logits.logsumexp(1), logits.logsumexp(0)


def true_weighted_sums(case: Case) -> tuple[Tensor, Tensor]:
    logits, y = masked_logits(case), case.y.unit.double()
    sums, slopes = weighted(logits, y, case.row, case.column, case.classes)
    return sums, torch.zeros(len(logits), dtype=torch.float64) if slopes is None else slopes


def rows_of(count: int, width: int, dtype: torch.dtype, size: float = 1.0) -> Embeddings:
    """Rows around a few directions, so that logits differ much; every 16th doubled."""
    rows = torch.randn(count, width, dtype=torch.float64)
    rows += 2 * torch.randn(5, width, dtype=torch.float64)[torch.arange(count) % 5]
    rows[15::16] = rows[14 : count - 1 : 16]
    return EAGER.prepare((size * rows).to(dtype), True, "fp32")


def side(case: Case, of_rows: bool, share: bool) -> Side:
    total = true_log_sums(case)[0 if of_rows else 1]
    total = torch.logaddexp(total.masked_fill(total == NONE, 0), torch.zeros(()).double())
    count, dtype = len(total), case.x.unit.dtype
    weight = torch.randn(count, dtype=dtype) / count
    return Side(
        weight,
        total.to(dtype),
        torch.randn(count, dtype=dtype) / case.temperature,
        weight / 3 if share else None,
    )


def temperature_of(value: float, dtype: torch.dtype) -> Tensor:
    return torch.tensor(value, dtype=dtype)


def cases(
    rows: int, columns: int, width: int, temperature: float, dtype: torch.dtype
) -> Iterator[Case]:
    """All options for one shape; with `columns` = `rows` the matrix is symmetric too."""
    tau = temperature_of(temperature, dtype)
    x, y = rows_of(rows, width, dtype), rows_of(columns, width, dtype)
    # Classes that differ in their high bits only, and in their low bits only.
    classes = Classes(*(torch.arange(n) % 2 - (torch.arange(n) % 3 << 40) for n in (rows, columns)))
    patterns = [None, Excluded(0), Excluded(3), Excluded(-2), Excluded(columns - 1)]
    if rows % 2 == 0:
        patterns += [Excluded(0, rows // 2), Excluded(1, rows // 2)]
    for pattern, row, column in itertools.product(patterns, (True, False), (True, False)):
        for grouped in (False, True):
            case = Case(x, y, tau, pattern)
            yield case._replace(
                row=side(case, True, grouped) if row else None,
                column=side(case, False, grouped) if column else None,
                classes=classes if grouped and (row or column) else None,
            )
    for pattern in [Excluded(0), Excluded(0, rows // 2 if rows % 2 == 0 else 0), None]:
        case = Case(x, x, tau, pattern)
        both, other = side(case, True, True), side(case, True, True)
        same = Classes(classes.rows, classes.rows)
        yield case._replace(row=both, column=both)
        yield case._replace(row=both, column=both, classes=same)
        yield case._replace(row=both, column=other, classes=same)
        yield case._replace(row=both)
