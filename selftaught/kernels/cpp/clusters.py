"""k-means' passes over the rows in C++; the bits of the formulas in `selftaught.search`."""

import ctypes

import torch
from torch import Tensor

from selftaught.kernels import native

# Bounds come in rows of whole vectors; the widest vector holds 16 float32.
COLUMNS = 16


class _Moved(ctypes.Structure):
    """`NearestCenterMoved` of csrc/cpu/nearest_center_moved.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "centers", "before", "path", "bounds")),
        *((name, ctypes.c_void_p) for name in ("index", "gap")),
        *((name, ctypes.c_int64) for name in ("N", "K", "D", "columns", "threads")),
    ]


class _ClusterSums(ctypes.Structure):
    """`ClusterSums` of csrc/cpu/clusters.cpp, as the structures below are of that file."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "weights", "scale", "before", "now")),
        *((name, ctypes.c_void_p) for name in ("totals", "masses", "moved")),
        *((name, ctypes.c_int64) for name in ("N", "K", "D", "threads")),
        ("weight_scale", ctypes.c_double),
    ]


class _ToGrid(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "origin", "scale", "out")),
        *((name, ctypes.c_int64) for name in ("N", "D", "threads")),
    ]


class _SquaredTo(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "centers", "index", "out")),
        *((name, ctypes.c_int64) for name in ("N", "D", "threads")),
    ]


class NearestAgain:
    """Nearest centre of the same rows again and again, while the centres move little by little.

    Every result is that of `nearest_center`, bit for bit. With `bounds` a lower bound of the
    distance is kept for every row and centre, and only those centres are looked at again that it
    does not rule out (Elkan 2003, by groups of as many centres as fill a vector).

    Attributes:
        gap: (N,) how much farther than the nearest centre every other one is, at least; after a
            call with `gaps`. Not positive, or NaN, where that is not known.
    """

    def __init__(self, x: Tensor, bounds: bool = True) -> None:
        """Of rows `x` (N, D) float32 or float64, contiguous; the bounds take N K such numbers."""
        self._x, self._keep = x, bounds
        self._before = x.new_empty(0, 0)
        self.gap = x.new_empty(0)

    def _forget(self, clusters: int) -> None:
        rows = len(self._x)
        columns = -(-clusters // COLUMNS) * COLUMNS
        self._bounds = self._x.new_empty(rows if self._keep else 0, columns)
        self._path = torch.zeros(clusters, dtype=torch.float64)
        self._index = torch.full((rows,), -1)

    def __call__(self, centers: Tensor, gaps: bool = False) -> Tensor:
        """Index (N,) int64 of the nearest of `centers` (K, D), the lowest on ties."""
        # A copy: the caller may move its centres in place.
        centers = centers.to(self._x.dtype, copy=True).contiguous()
        first = len(self._before) != len(centers)
        if first:
            self._forget(len(centers))
        # The last result is the caller's.
        self._index = self._index.clone()
        if gaps:
            self.gap = self._x.new_empty(len(self._x))
        arguments = _Moved(
            x=native.pointer(self._x),
            centers=native.pointer(centers),
            before=None if first else native.pointer(self._before),
            path=native.pointer(self._path),
            bounds=native.pointer(self._bounds) if self._keep else None,
            index=native.pointer(self._index),
            gap=native.pointer(self.gap) if gaps else None,
            N=len(self._x),
            K=len(centers),
            D=self._x.shape[1],
            columns=self._bounds.shape[1],
            threads=torch.get_num_threads(),
        )
        native.run("nearest_center_moved", self._x.dtype, arguments)
        self._before = centers
        return self._index


def cluster_sums(
    x: Tensor,
    totals: Tensor,
    masses: Tensor,
    now: Tensor | None,
    before: Tensor | None = None,
    *,
    weights: Tensor | None = None,
    scale: Tensor | None = None,
    weight_scale: float = 1.0,
) -> int:
    """Brings exact sums of rows by cluster up to date.

    Args:
        x: (N, D) float32 or float64, on a grid where `scale` is None (`search.exact_sums`).
        totals: (K, D) float64, sums of the rows, changed in place.
        masses: (K,) float64, sums of the weights, changed in place.
        now: (N,) int64 clusters; None: all rows are in cluster 0.
        before: (N,) int64, how the sums hold the rows so far; None: they are made anew.
        weights: (N,) float64; needs `scale`.
        scale: (D,) float64, what numbers are multiplied by before they are rounded and summed.
        weight_scale: the same for the weights.

    Returns:
        How many rows changed their cluster.
    """
    assert weights is None or scale is not None
    moved = torch.zeros(1, dtype=torch.int64)
    arguments = _ClusterSums(
        x=native.pointer(x),
        weights=native.pointer(weights),
        scale=native.pointer(scale),
        before=native.pointer(before),
        now=native.pointer(now),
        totals=native.pointer(totals),
        masses=native.pointer(masses),
        moved=native.pointer(moved),
        N=x.shape[0],
        K=totals.shape[0],
        D=x.shape[1],
        threads=torch.get_num_threads(),
        weight_scale=weight_scale,
    )
    native.run("cluster_sums", x.dtype, arguments)
    return int(moved)


def to_grid(x: Tensor, origin: Tensor, scale: Tensor) -> Tensor:
    """round((x - origin) * scale) / scale (N, D) in float32, computed in float64."""
    out = torch.empty_like(x, dtype=torch.float32)
    arguments = _ToGrid(
        x=native.pointer(x),
        origin=native.pointer(origin),
        scale=native.pointer(scale),
        out=native.pointer(out),
        N=x.shape[0],
        D=x.shape[1],
        threads=torch.get_num_threads(),
    )
    native.run("to_grid", x.dtype, arguments)
    return out


def squared_to(x: Tensor, centers: Tensor, index: Tensor) -> Tensor:
    """Squared distance (N,) float64 of each row of `x` (N, D) to `centers[index]`."""
    centers, index = centers.double().contiguous(), index.contiguous()
    assert not len(index) or 0 <= int(index.min()) <= int(index.max()) < len(centers)
    out = x.new_empty(len(x), dtype=torch.float64)
    arguments = _SquaredTo(
        x=native.pointer(x),
        centers=native.pointer(centers),
        index=native.pointer(index),
        out=native.pointer(out),
        N=x.shape[0],
        D=x.shape[1],
        threads=torch.get_num_threads(),
    )
    native.run("squared_to", x.dtype, arguments)
    return out
