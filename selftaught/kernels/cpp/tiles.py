"""The tiled passes of the contrastive losses in C++, for float32 and float64 on the CPU."""

import ctypes

import torch
from torch import Tensor

from selftaught.kernels import native
from selftaught.kernels.reference.common import compute_dtype
from selftaught.kernels.tiles import Classes, Embeddings, Excluded, Side

# Below this many multiplications starting threads costs more than they save.
SMALL = 1 << 21


class _Matrix(ctypes.Structure):
    """`Matrix` of csrc/cpu/contrastive.h; the other structures here mirror that file too."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "y", "temperature")),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "width")),
        *((name, ctypes.c_int64) for name in ("excluded", "offset", "half")),
        *((name, ctypes.c_int64) for name in ("symmetric", "threads")),
    ]


class _LogSums(ctypes.Structure):
    _fields_ = [
        ("matrix", _Matrix),
        ("of_rows", ctypes.c_void_p),
        ("of_columns", ctypes.c_void_p),
    ]


class _Side(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in Side._fields]


class _WeightedSums(ctypes.Structure):
    _fields_ = [
        ("matrix", _Matrix),
        ("row", _Side),
        ("column", _Side),
        *((name, ctypes.c_void_p) for name in ("row_classes", "column_classes")),
        *((name, ctypes.c_void_p) for name in ("sums", "slopes")),
    ]


class _Normalize(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("z", "unit", "inverse")),
        *((name, ctypes.c_int64) for name in ("rows", "width", "threads")),
    ]


class _Finish(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("sums", "unit", "inverse", "temperature")),
        *((name, ctypes.c_void_p) for name in ("partner", "coefficient", "gradient")),
        *((name, ctypes.c_int64) for name in ("rows", "width", "threads")),
    ]


class _Dots(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "y")),
        *((name, ctypes.c_int64) for name in ("rows", "width")),
        ("of_rows", ctypes.c_void_p),
    ]


def threads(work: int) -> int:
    """Threads for so many multiplications."""
    return 1 if work < SMALL else torch.get_num_threads()


def _matrix(
    x: Embeddings, y: Embeddings, temperature: Tensor, excluded: Excluded | None
) -> _Matrix:
    rows, width = x.unit.shape
    columns = y.unit.shape[0]
    offset, half = excluded or Excluded(0)
    return _Matrix(
        x=native.pointer(x.unit),
        y=native.pointer(y.unit),
        temperature=native.pointer(temperature),
        rows=rows,
        columns=columns,
        width=width,
        excluded=excluded is not None,
        offset=offset,
        half=half,
        symmetric=y is x and offset == 0 and half * 2 in (0, rows),
        threads=threads(rows * columns * width),
    )


def _side(side: Side | None) -> tuple[_Side, list[Tensor]]:
    """The struct, and the tensors that must outlive it."""
    if side is None:
        return _Side(), []
    parts = {name: part.contiguous() for name, part in side._asdict().items() if part is not None}
    return _Side(**{name: part.data_ptr() for name, part in parts.items()}), list(parts.values())


class CppTiles:
    """`selftaught.kernels.tiles.Tiles` on the native library."""

    def prepare(self, z: Tensor, normalize: bool, precision: str) -> Embeddings:
        """See `Tiles`; always in full precision."""
        del precision
        z = z.detach().to(compute_dtype(z)).contiguous()
        if not normalize:
            return Embeddings(unit=z, inverse=None)
        unit, inverse = torch.empty_like(z), z.new_empty(z.shape[0], 1)
        arguments = _Normalize(
            z=native.pointer(z),
            unit=native.pointer(unit),
            inverse=native.pointer(inverse),
            rows=z.shape[0],
            width=z.shape[1],
            threads=threads(z.numel()),
        )
        native.run("normalize", z.dtype, arguments)
        return Embeddings(unit=unit, inverse=inverse)

    def dots(self, x: Embeddings, y: Embeddings) -> Tensor:
        """See `Tiles`; the sum runs in the order of the passes, so equal rows give equal bits."""
        result = x.unit.new_empty(x.unit.shape[0])
        arguments = _Dots(
            x=native.pointer(x.unit),
            y=native.pointer(y.unit),
            rows=x.unit.shape[0],
            width=x.unit.shape[1],
            of_rows=native.pointer(result),
        )
        native.run("dots", result.dtype, arguments)
        return result

    def log_sums(
        self,
        x: Embeddings,
        y: Embeddings,
        temperature: Tensor,
        excluded: Excluded | None,
        *,
        columns: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See `Tiles`."""
        of_rows = x.unit.new_empty(x.unit.shape[0])
        of_columns = x.unit.new_empty(y.unit.shape[0]) if columns else None
        arguments = _LogSums(
            matrix=_matrix(x, y, temperature, excluded),
            of_rows=native.pointer(of_rows),
            of_columns=native.pointer(of_columns),
        )
        native.run("log_sums", of_rows.dtype, arguments)
        return of_rows, of_columns

    def weighted_sums(
        self,
        x: Embeddings,
        y: Embeddings,
        temperature: Tensor,
        excluded: Excluded | None,
        *,
        row: Side | None,
        column: Side | None,
        classes: Classes | None = None,
        slope: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See `Tiles`."""
        sums = torch.empty_like(x.unit)
        slopes = x.unit.new_empty(x.unit.shape[0]) if slope else None
        of_row, _kept = _side(row)
        of_column, _kept_too = (of_row, []) if column is row else _side(column)
        row_classes = column_classes = None
        if classes is not None:
            row_classes = classes.rows.contiguous()
            same = classes.columns is classes.rows
            column_classes = row_classes if same else classes.columns.contiguous()
        arguments = _WeightedSums(
            matrix=_matrix(x, y, temperature, excluded),
            row=of_row,
            column=of_column,
            row_classes=native.pointer(row_classes),
            column_classes=native.pointer(column_classes),
            sums=native.pointer(sums),
            slopes=native.pointer(slopes),
        )
        native.run("weighted_sums", sums.dtype, arguments)
        return sums, slopes

    def finish(
        self,
        sums: Tensor,
        x: Embeddings,
        temperature: Tensor,
        partner: Embeddings | None = None,
        coefficient: Tensor | None = None,
    ) -> Tensor:
        """See `Tiles`."""
        gradient = torch.empty_like(sums)
        coefficient = None if coefficient is None else coefficient.contiguous()
        arguments = _Finish(
            sums=native.pointer(sums),
            unit=native.pointer(x.unit),
            inverse=native.pointer(x.inverse),
            temperature=native.pointer(temperature),
            partner=None if partner is None else native.pointer(partner.unit),
            coefficient=native.pointer(coefficient),
            gradient=native.pointer(gradient),
            rows=sums.shape[0],
            width=sums.shape[1],
            threads=threads(sums.numel()),
        )
        native.run("finish", sums.dtype, arguments)
        return gradient


TILES = CppTiles()
