"""Nearest centre of every row, through the fused op or FAISS, whatever rows are asked together."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from selftaught.errors import InputError
from selftaught.kernels import dispatch, ops
from selftaught.kernels.cpp.clusters import NearestAgain
from selftaught.search.direct import compiled
from selftaught.search.exact_knn import squared_knn
from selftaught.search.flat import BLOCK, flat_search, load_faiss, map_blocks

BACKENDS = ("auto", "native", "faiss")

# Of a rank's rows and the centres; beyond it all centres are compared in every iteration.
BOUND_BYTES = 1 << 28

Assign = Callable[[Tensor, Tensor], Tensor]


def choose(backend: str, device: torch.device, width: int) -> str:
    """Which of native and faiss `backend` means.

    "auto" is the fused op where it has a compiled backend for the device (on a CPU the C++ one,
    measured faster than FAISS), else FAISS on a CPU that has it, else the op's plain formulas.

    Raises:
        ValueError: not one of `BACKENDS`.
        InputError: faiss was asked for and is missing.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: got {backend!r}, allowed are {', '.join(BACKENDS)}")
    if backend == "faiss":
        load_faiss()
        return backend
    request = dispatch.Request(op="nearest_center", device=device, dtype=torch.float32, width=width)
    if backend == "native" or device.type != "cpu" or dispatch.choose(request) != "reference":
        return "native"
    try:
        load_faiss()
    except InputError:
        return "native"
    return "faiss"


def native(x: Tensor, centers: Tensor) -> Tensor:
    """Index (N,) int64 of the nearest centre, by the fused op on the device of `x`.

    Args:
        x: (N, D) float32 or float64.
        centers: (K, D).
    """
    if not len(x):
        return torch.zeros(0, dtype=torch.int64, device=x.device)
    return ops.nearest_center(x, centers.to(x.dtype), None, "auto", "auto")[1]


class Again:
    """`native` of the same rows for centres that move little, in C++."""

    def __init__(self, x: Tensor, clusters: int) -> None:
        """Of rows `x` (N, D) float32 on the CPU and about that many clusters."""
        self._x = x
        self._nearest = NearestAgain(x, bounds=4 * len(x) * clusters <= BOUND_BYTES)

    def __call__(self, x: Tensor, centers: Tensor) -> Tensor:
        """What `native` returns; `x` must be the rows given at first."""
        assert x is self._x
        return self._nearest(centers)

    def with_gaps(self, centers: Tensor) -> tuple[Tensor, Tensor]:
        """Also (N,) how much farther every other centre is, at least; NaN or <= 0: unknown."""
        index = self._nearest(centers, gaps=True)
        return index.clone(), self._nearest.gap


def repeated(kind: str, x: Tensor, clusters: int) -> Assign:
    """The function of `kind`, what `choose` returned, for one run of k-means on rows `x`."""
    if kind == "faiss":
        return faiss
    return Again(x, clusters) if compiled(x.device) else native


def faiss(x: Tensor, centers: Tensor) -> Tensor:
    """Index (N,) int64 of the nearest centre through FAISS, on the CPU.

    FAISS rounds differently in other batches. A row whose two nearest centres lie closer together
    than its rounding could be is decided in float64.

    Args:
        x: (N, D) float32 about the origin of the centres.
        centers: (K, D).
    """
    rows, places = x.numpy(), np.ascontiguousarray(centers.numpy(), np.float32)
    if len(places) == 1 or not len(rows):
        return torch.zeros(len(rows), dtype=torch.int64)
    search = flat_search(places, 2)
    rounding = (x.shape[1] + 16) * 2.0**-24
    longest = np.linalg.norm(places.astype(np.float64), axis=1).max()
    exact = places.astype(np.float64)

    def settle(block: slice) -> np.ndarray:
        squared, index = search(rows[block])
        reach = (np.linalg.norm(rows[block].astype(np.float64), axis=1) + longest) ** 2
        sure = squared[:, 1] - squared[:, 0] > 2 * rounding * reach
        index = index[:, 0]
        if not sure.all():
            unsure = rows[block][~sure].astype(np.float64)
            index[~sure] = squared_knn(unsure, exact, 1)[1][:, 0]
        return index

    return torch.from_numpy(np.concatenate(list(map_blocks(settle, len(rows), BLOCK))))
