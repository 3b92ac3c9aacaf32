"""Exhaustive search through FAISS in blocks of fixed size: one GPU, or threads that never spin.

FAISS's own OpenMP team busy-waits: with torch's in the same process and only as many cores as
threads, two threads were measured 5 to 10 times slower than one. So every FAISS call here is
single-threaded and Python threads (FAISS releases the interpreter lock) take whole blocks. As the
blocks do not depend on the number of threads, neither does any result.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch

from selftaught.errors import InputError

BLOCK = 4096
LARGEST = 1e17
GPU_NEIGHBOURS = 2048
GPU_SCRATCH_BYTES = 256 << 20

T = TypeVar("T")
Array = np.ndarray
Search = Callable[[Array], tuple[Array, Array]]


def load_faiss() -> Any:
    """The faiss module.

    Raises:
        InputError: it is not installed, or its CUDA libraries are not.
    """
    try:
        import faiss
    except (ImportError, RuntimeError) as error:
        reason = (str(error).splitlines() or ["unknown reason"])[0]
        raise InputError(
            f"faiss cannot be imported ({reason}): pip install selftaught[train]"
        ) from error
    return faiss


def checked(
    values: torch.Tensor | Array,
    name: str,
    *,
    empty: bool = False,
    device: torch.device | None = None,
    first: int = 0,
) -> torch.Tensor:
    """`values` as a finite (N, D) float32 or float64 tensor, contiguous.

    Args:
        values: tensor or array.
        name: how messages call it.
        empty: accept no rows.
        device: where the result goes; None: where `values` are.
        first: number that messages give to the first row.

    Raises:
        ValueError: not a matrix, no rows or columns, not floating point, not finite, or so large
            that squares overflow in float32.
    """
    if isinstance(values, Array) and not values.flags.writeable:
        values = values.copy()  # torch warns of memory that it may not write, as in mapped files
    tensor = torch.as_tensor(values).detach()
    rows, width = (*tensor.shape, 0, 0)[:2]
    if tensor.ndim != 2 or width == 0 or (rows == 0 and not empty):
        raise ValueError(f"{name}: shape {tuple(tensor.shape)}, must be (N, D), both at least 1")
    if not tensor.is_floating_point():
        raise ValueError(f"{name}: {tensor.dtype}, must be floating point")
    if device is not None:
        tensor = tensor.to(device)
    if tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.float()
    tensor = tensor.contiguous()
    if rows:
        # A comparison with NaN is false, so one bound finds all three kinds.
        low, high = torch.aminmax(tensor)
        if not (low >= -LARGEST and high <= LARGEST):
            good = (tensor.abs() <= LARGEST).all(dim=1)
            row = first + int((~good).int().argmax())
            raise ValueError(
                f"{name}: row {row} holds a value that is not finite or not within +-{LARGEST:g}"
            )
    return tensor


def matrix(
    values: torch.Tensor | Array, name: str, *, empty: bool = False, first: int = 0
) -> Array:
    """`checked` as an array on the CPU, in C order."""
    device = torch.device("cpu")
    return checked(values, name, empty=empty, device=device, first=first).numpy()


def map_blocks(function: Callable[[slice], T], rows: int, block: int = BLOCK) -> Iterator[T]:
    """Results of `function` over consecutive blocks of `rows`, in order, `torch` threads wide."""
    blocks = [slice(start, min(start + block, rows)) for start in range(0, rows, block)]
    workers = min(torch.get_num_threads(), len(blocks))
    if workers < 2:
        yield from map(function, blocks)
        return
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(function, blocks)


def flat_search(database: Array, k: int) -> Search:
    """A function that finds the `k` rows of `database` nearest to each query.

    Distances are squared and come from |q|^2 + |x|^2 - 2qx in float32: subtract a common offset
    first and take them as candidates, never as results. Ties fall in any order.

    Args:
        database: (N, D) float32, C order.
        k: 1 to N.

    Returns:
        A function (Q, D) float32 -> (squared distances (Q, k) float32, rows (Q, k) int64), which
        may be called from several threads.

    Raises:
        InputError: faiss is missing.
    """
    faiss = load_faiss()
    if faiss.get_num_gpus() > 0 and k <= GPU_NEIGHBOURS:
        return _gpu_search(faiss, database, k)

    def search(queries: Array) -> tuple[Array, Array]:
        with one_thread(faiss):
            return faiss.knn(queries, database, k)

    return search


@contextmanager
def one_thread(faiss: Any) -> Iterator[None]:
    """Keep FAISS single-threaded in the calling thread; the setting is per thread."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def _gpu_search(faiss: Any, database: Array, k: int) -> Search:
    """`flat_search` on torch's current device; calls from several threads take turns."""
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(GPU_SCRATCH_BYTES)
    device = torch.cuda.current_device() if torch.cuda.is_available() else 0
    index = faiss.index_cpu_to_gpu(resources, device, faiss.IndexFlatL2(database.shape[1]))
    index.add(database)
    lock = Lock()

    def search(queries: Array) -> tuple[Array, Array]:
        with lock:
            return index.search(queries, k)

    return search
