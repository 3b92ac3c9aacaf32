"""Mean distance to the nearest rows: products propose, exact distances decide, bounds certify."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from selftaught import host
from selftaught.arguments import whole
from selftaught.search.kmeans import Points, checked

Array = np.ndarray
TOLERANCE = 1e-6  # of a squared distance: a missing neighbour that is no nearer changes no score
UNDERFLOW = 2.0**-60  # of the k-th squared distance; float32 loses some that are far smaller
GPU_NEIGHBOURS = 2048  # the most that FAISS finds on a GPU
BLOCK_VALUES = 1 << 22  # distances of queries to all rows at a time
CACHED_VALUES = 1 << 17  # of gathered rows at a time


def load_faiss() -> Any:
    """The faiss module, None where it or its CUDA libraries are not installed."""
    try:
        import faiss
    except (ImportError, RuntimeError):
        return None
    return faiss


@contextmanager
def _one_thread(faiss: Any) -> Iterator[None]:
    threads = faiss.omp_get_max_threads()  # of the calling thread alone
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def _in_threads(faiss: Any, work: Callable[[slice], Any], rows: int) -> list[Any]:
    """Results of `work` on parts of so many rows, each in a thread in which FAISS starts no others.

    FAISS's own idle threads spin: beside torch's on as many cores, two were measured 5 to 10 times
    slower than one.
    """
    count = torch.get_num_threads()
    size = min(4096, max(64, -(-rows // count)))

    def run(start: int) -> Any:
        with _one_thread(faiss):
            return work(slice(start, start + size))

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(0, rows, size)))


def _by_faiss(faiss: Any, queries: Array, table: Array, m: int) -> tuple[Array, Array]:
    """Squared distances (Q, m) and rows of the m nearest, nearest first, by products on a GPU."""
    device = torch.cuda.current_device() if torch.cuda.is_available() else 0
    nearest: tuple[Array, Array] = faiss.knn_gpu(
        faiss.StandardGpuResources(), queries, table, m, device=device
    )
    return nearest


def _by_torch(
    queries: Array, table: Array, m: int, *, direct: bool, kind: torch.dtype = torch.float64
) -> tuple[Array, Array]:
    """The same in `kind`; `direct`: by differences, right to rounding but slower."""
    rows, mode = torch.from_numpy(table).to(kind), "donot_use_mm_for_euclid_dist"
    lengths = rows.square().sum(1)
    nearest = []
    for part in torch.from_numpy(queries).to(kind).split(max(1, BLOCK_VALUES // len(table))):
        if direct:
            squared = torch.cdist(part, rows, compute_mode=mode).square()
        else:
            squared = torch.addmm(lengths, part, rows.T, alpha=-2) + part.square().sum(1)[:, None]
        nearest.append(torch.topk(squared, m, largest=False))
    numbers = torch.cat([one.indices for one in nearest]).numpy()
    return torch.cat([one.values for one in nearest]).numpy(), numbers


def _exactly(faiss: Any, queries: Array, table: Array, rows: Array) -> Array:
    """Squared distance (Q, M) of every query to its `rows` (Q, M), by direct differences.

    FAISS gets float32, which does: a difference of two is rounded once, whatever their offset.
    """
    m, width = rows.shape[1], table.shape[1]
    if faiss:
        out = np.empty(rows.shape, np.float32)

        def work(part: slice) -> None:
            arrays = (out[part], queries[part], table, rows[part])
            pointers = [faiss.swig_ptr(array) for array in arrays]
            faiss.fvec_L2sqr_by_idx(*pointers, width, len(arrays[0]), m)

        _in_threads(faiss, work, len(queries))
        return out.astype(np.float64)
    squared, step = [], max(1, CACHED_VALUES // (m * width))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        difference = table[rows[part]].astype(np.float64) - queries[part, None]
        squared.append(np.einsum("qmd,qmd->qm", difference, difference))
    return np.concatenate(squared)


def _scores(asked: Array, table: Array, k: int) -> Array:
    """Mean distances (Q,) float64, by the first proposer that is certain for a query.

    A row that is not proposed has an approximate squared distance of at least the farthest
    proposal's. Only rows with |x| <= |q| + r can lie within the k-th distance r, and for those sums
    of D products are wrong by at most D + 16 roundings of (|q| + |x|)^2. Where the farthest
    proposal is beyond r^2 by that, no neighbour is missing.
    """
    faiss = load_faiss() if table.dtype == np.float32 else None
    m = k + max(4, k // 8)
    # Any origin is right; the median stays amid the data when a few rows are far out.
    sample = table[:: -(-len(table) // 128)]
    origin = np.median(sample, axis=0)
    near, places = asked, table
    if np.square(origin).sum() > np.square(sample - origin).sum(axis=1).mean():
        near, places = asked - origin, table - origin
    norms = np.linalg.norm(near.astype(np.float64), axis=1)
    proposers: list[tuple[str, float]] = [("direct", 0.0)]
    if m < len(table):
        proposers = [("double", 2.0**-53), *proposers]
        if faiss and faiss.get_num_gpus() and m <= GPU_NEIGHBOURS:
            proposers = [("faiss", 2.0**-24), *proposers]
        elif table.dtype == np.float32:
            # Twice as fast on a CPU as a flat search of FAISS.
            proposers = [("single", 2.0**-24), *proposers]
    scores, pending = np.empty(len(asked)), np.arange(len(asked))
    for name, rounding in proposers:
        if name == "faiss":
            best = _by_faiss(faiss, near[pending], places, m)
        elif name == "single":
            best = _by_torch(near[pending], places, m, direct=False, kind=torch.float32)
        elif name == "double":
            double = table.astype(np.float64) - origin
            best = _by_torch(asked[pending].astype(np.float64) - origin, double, m, direct=False)
        else:
            best = _by_torch(asked[pending], table, k, direct=True)
        single = faiss if rounding == 2.0**-24 else None
        exact = np.sort(_exactly(single, asked[pending], table, best[1]), axis=1)[:, :k]
        error = (table.shape[1] + 16) * rounding * (2 * norms[pending] + np.sqrt(exact[:, -1])) ** 2
        sure = best[0][:, -1] - error >= (1 - TOLERANCE) * exact[:, -1]
        if rounding == 2.0**-24:
            sure &= exact[:, -1] > UNDERFLOW
        sure |= name == "direct"
        scores[pending[sure]] = np.sqrt(exact[sure]).mean(axis=1)
        pending = pending[~sure]
        if not len(pending):
            break
    return scores


def _traced(queries: Tensor, database: Tensor, k: int) -> Tensor:
    """`knn_score` in torch's operations alone, which an exported program can hold."""
    asked, table = queries.double(), database.double()
    squared = torch.addmm(table.square().sum(1), asked, table.T, alpha=-2)
    rows = squared.topk(min(k, len(table)), largest=False).indices
    return (table[rows] - asked[:, None]).square().sum(2).sqrt().mean(1).float()


@host.defaults()
def knn_score(queries: Points, database: Points, k: int = 100) -> Tensor:
    """Mean Euclidean distance to the k nearest rows: the paper's 100-NN ablation (Table 1).

    Right to 1e-6 of the mean computed in float64, whatever rows are asked together and whatever
    offset the data has in common. With fewer than k rows in the database all of them count: the
    score is then comparable only with scores against the same database.

    Args:
        queries: (Q, D) floats, features `h` of the images to score: all that `kmeans` takes.
        database: (N, D) floats, features of normal training images.
        k: at least 1.

    Returns:
        (Q,) float32 on the CPU, higher = more abnormal.

    Raises:
        ValueError: k no whole number or below 1, widths that differ, no rows, not floating point,
            masked, sparse or not finite.
    """
    k = whole("k", k)
    if torch.compiler.is_exporting():
        return _traced(cast(torch.Tensor, queries), cast(torch.Tensor, database), k)
    asked, table = checked(queries, "queries").cpu(), checked(database, "database").cpu()
    if asked.shape[1] != table.shape[1]:
        raise ValueError(
            f"queries: width {asked.shape[1]}, must be the database's width {table.shape[1]}"
        )
    kind = torch.promote_types(asked.dtype, table.dtype)
    scores = _scores(asked.to(kind).numpy(), table.to(kind).numpy(), min(k, len(table)))
    return torch.from_numpy(scores).float()
