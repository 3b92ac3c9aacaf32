"""Searches that propose neighbours: approximate distances, to be settled by direct difference."""

import numpy as np
import torch

from selftaught.errors import InputError
from selftaught.search.flat import BLOCK, Array, Search, flat_search, load_faiss
from selftaught.search.seeding import UNIT

BACKENDS = ("auto", "native", "faiss")
QUERIES = 512
FAISS_PRODUCTS = 128_000
COLUMNS = 16_384


def available(backend: str) -> str:
    """`backend` checked; "auto" becomes "native" where faiss is missing, "faiss" on a GPU it sees.

    Raises:
        ValueError: not one of `BACKENDS`.
        InputError: faiss was asked for and is missing.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: got {backend!r}, allowed are {', '.join(BACKENDS)}")
    if backend == "native":
        return backend
    try:
        faiss = load_faiss()
    except InputError:
        if backend == "faiss":
            raise
        return "native"
    return "faiss" if backend == "faiss" or faiss.get_num_gpus() else "auto"


def settled(backend: str, numbers: int) -> str:
    """Native or "faiss" for a search that asks for `numbers` query values.

    On a CPU FAISS takes matrix products from 128,000 values on. There it was measured twice as
    fast as torch's product and topk; below, where it subtracts row by row, up to 3 times slower.
    """
    if backend != "auto":
        return backend
    return "faiss" if numbers >= FAISS_PRODUCTS else "native"


def rounding(width: int, kind: type, backend: str) -> float:
    """Bound on a proposed squared distance's error, as a share of (|q| + |x|)^2.

    |q|^2 + |x|^2 - 2qx has sums of `width` products, and 16 more operations cover the rest. torch
    may be set to round a float32 product's inputs further.
    """
    error = (width + 16) * float(np.finfo(kind).eps) / 2
    if kind is np.float32 and backend == "native":
        further = UNIT[torch.get_float32_matmul_precision()]
        error += 4 * further if further > 2.0**-24 else 0.0
    return error


def product_search(database: Array, k: int) -> Search:
    """The `k` rows with the least |x|^2 - 2qx + |q|^2, by matrix products and torch.topk.

    Args:
        database: (N, D) float32 or float64, C order.
        k: 1 to N.

    Returns:
        A function (Q, D) -> (squared distances (Q, k), rows (Q, k) int64), in any order, which
        uses torch's threads.
    """
    table = torch.from_numpy(database)
    lengths = torch.cat([part.square().sum(1) for part in table.split(BLOCK)])

    def search(queries: Array) -> tuple[Array, Array]:
        asked = torch.from_numpy(queries)
        squared = asked.new_empty(len(asked), 0)
        rows = torch.empty(len(asked), 0, dtype=torch.int64)
        for start in range(0, len(table), COLUMNS):
            part = slice(start, start + COLUMNS)
            scores = torch.addmm(lengths[part], asked, table[part].T, alpha=-2)
            least = torch.topk(scores, min(k, scores.shape[1]), largest=False, sorted=False)
            squared = torch.cat([squared, least.values], dim=1)
            rows = torch.cat([rows, least.indices + start], dim=1)
            if squared.shape[1] > k:
                squared, order = torch.topk(squared, k, largest=False, sorted=False)
                rows = rows.gather(1, order)
        return (squared + asked.square().sum(1, keepdim=True)).numpy(), rows.numpy()

    return search


def proposer(database: Array, k: int, kind: type, backend: str) -> tuple[Search, bool]:
    """A search in `kind`, and whether several threads may share it (else it uses its own)."""
    if kind is np.float32 and backend == "faiss":
        return flat_search(database, k), True
    return product_search(database, k), False
