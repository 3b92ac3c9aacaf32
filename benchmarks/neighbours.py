"""Mean distance to 100 neighbours: ours against FAISS, scikit-learn and torch, error beside time.

python -m benchmarks.neighbours [--shape 2000x20000x128 ...]
"""

import argparse
import math
import sys
from functools import partial

import numpy as np
import torch

from benchmarks.measure import interleaved, median_ratio, summary
from benchmarks.peers import Peer, present
from benchmarks.plot import draw
from benchmarks.record import kept, write
from selftaught.search import knn_score

K = 100
# (queries, database rows, width); the last two are the gates of the design.
SHAPES = [(200, 20_000, 128), (2_000, 20_000, 128), (2_000, 20_000, 512)]
ROUNDS = 5
REST = 0.05  # seconds before each call


def data(kind, queries, rows, width):
    """Broad groups, or the same about a common offset, where expanded distances lose digits."""
    rng = np.random.default_rng(0)
    groups = rng.standard_normal((50, width))
    both = groups[rng.integers(0, 50, queries + rows)]
    both = both + 0.5 * rng.standard_normal(both.shape) + (10 if kind == "offset" else 0)
    both = both.astype(np.float32)
    return both[:queries], both[queries:]


def truth(queries, database):
    """Scores in float64 by direct differences to float64 candidates twice as many as asked for."""
    origin = database.mean(0, dtype=np.float64)
    table = torch.from_numpy(database - origin)
    lengths, out = table.square().sum(1), []
    for part in torch.from_numpy(queries - origin).split(64):
        near = torch.topk(lengths - 2 * part @ table.T, 2 * K, largest=False).indices
        squared = (table[near] - part[:, None]).square().sum(2)
        out.append(squared.topk(K, largest=False).values.sqrt().mean(1))
    return torch.cat(out)


def faiss(queries, database):
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    return torch.from_numpy(np.sqrt(faiss.knn(queries, database, K)[0]).mean(1))


def faiss_gpu(queries, database):
    import faiss

    index = faiss.index_cpu_to_gpu(
        faiss.StandardGpuResources(), 0, faiss.IndexFlatL2(database.shape[1])
    )
    index.add(database)
    return torch.from_numpy(np.sqrt(index.search(queries, K)[0]).mean(1))


def sklearn(queries, database):
    from sklearn.neighbors import NearestNeighbors

    peer = NearestNeighbors(n_neighbors=K, algorithm="brute").fit(database)
    return torch.from_numpy(peer.kneighbors(queries)[0].mean(1))


def on_device(*arrays):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return [torch.from_numpy(array).to(device) for array in arrays]


def keops(queries, database):
    from pykeops.torch import LazyTensor

    x, table = on_device(queries, database)
    squared = ((LazyTensor(x[:, None]) - LazyTensor(table[None])) ** 2).sum(-1)
    return squared.Kmin(K, dim=1).sqrt().mean(1).cpu()


def cdist(queries, database):
    x, table = on_device(queries, database)
    parts = x.split(512)
    return torch.cat(
        [torch.cdist(part, table).topk(K, largest=False).values.mean(1) for part in parts]
    ).cpu()


PEERS = {
    "faiss": Peer(faiss, "faiss"),
    "scikit-learn": Peer(sklearn, "sklearn"),
    "keops": Peer(keops, "pykeops", most=2e9),
}


def providers(shape):
    """Name to function; a peer that cannot run here is named on the terminal and left out."""
    found = {"selftaught": partial(knn_score, k=K), "torch": cdist}
    found |= present(PEERS, math.prod(shape))
    if torch.cuda.is_available() and "faiss" in found:
        found["faiss on the GPU"] = faiss_gpu
    return found


def measure(kind, shape):
    queries, database = data(kind, *shape)
    expected, work, errors = truth(queries, database), {}, {}
    for name, function in providers(shape).items():
        try:
            found = function(queries, database).double()
            errors[name] = float(((found - expected).abs() / expected).max())
            work[name] = partial(function, queries, database)
        except Exception as error:
            print(f"{name}: skipped, {type(error).__name__}: {error}", file=sys.stderr)
    times = interleaved(work, ROUNDS, warm=0, rest=REST)
    return [
        {
            "kernel": "knn_score",
            "provider": name,
            "mode": kind,
            "shape": "x".join(map(str, shape)),
            "dtype": "fp32",
            **summary(values),
            "faiss_over_it": median_ratio(times["faiss"], values) if "faiss" in times else "",
            "largest_relative_error": f"{errors[name]:.1e}",
        }
        for name, values in times.items()
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    known = {"x".join(map(str, shape)): shape for shape in SHAPES}
    parser.add_argument(
        "--shape", choices=known, nargs="+", help="only these; the CSV keeps its rows of the others"
    )
    chosen = parser.parse_args().shape
    rows = kept("neighbours", lambda row: row["shape"] not in chosen) if chosen else []
    for shape in [known[name] for name in chosen or known]:
        for kind in ("groups", "offset"):
            for row in measure(kind, shape):
                print(row, flush=True)
                rows.append(row)
    print(write("neighbours", rows), draw("neighbours"))


if __name__ == "__main__":
    main()
