"""k-means from one start: ours against the libraries people use, inertia beside every time.

python -m benchmarks.kmeans
"""

import math
import sys
import time
import warnings

import numpy as np
import torch

from benchmarks.measure import interleaved, median_ratio, summary
from benchmarks.nearest_center import keops as keops_index
from benchmarks.peers import Peer, present
from benchmarks.plot import draw
from benchmarks.record import write
from selftaught.search import kmeans

# (rows, centres, width, iterations); the first is the gate of the design.
SHAPES = [(20_000, 100, 128, 20), (20_000, 100, 128, 50)]
ROUNDS = 7
REST = 0.05  # seconds until idle OpenMP threads of the provider before stop spinning


def data(kind, rows, centers, width):
    """Rows and a start: overlapping groups, as embeddings are, or no structure at all."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, width))
    if kind == "groups":
        x += 0.5 * rng.standard_normal((centers, width))[rng.integers(0, centers, rows)]
    x = x.astype(np.float32)
    return x, x[rng.choice(rows, centers, replace=False)].copy()


def inertia(x, centers):
    """Sum of squared distances to the nearest of `centers`, float64, by direct differences."""
    rows, places = torch.from_numpy(x).double(), torch.as_tensor(centers).double().cpu()
    total = 0.0
    for part in rows.split(8192):
        index = torch.cdist(part, places).argmin(1)
        total += float((part - places[index]).square().sum())
    return total


def ours(x, start, iterations):
    return kmeans(x, len(start), initial=start, iterations=iterations).centers


def resident(x, start, iterations):
    """Ours with the rows on the GPU already."""
    return kmeans(RESIDENT[id(x)], len(start), initial=start, iterations=iterations).centers


RESIDENT = {}


def sklearn(x, start, iterations):
    from sklearn.cluster import KMeans

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of not having converged
        peer = KMeans(len(start), init=start, n_init=1, max_iter=iterations, tol=0)
        return peer.fit(x).cluster_centers_


def faiss(x, start, iterations):
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    peer = faiss.Clustering(x.shape[1], len(start))
    peer.niter, peer.max_points_per_centroid = iterations, 10**9
    faiss.copy_array_to_vector(start.ravel(), peer.centroids)
    peer.train(x, faiss.IndexFlatL2(x.shape[1]))
    return faiss.vector_to_array(peer.centroids).reshape(start.shape)


def fastkmeans(x, start, iterations):
    from fastkmeans import FastKMeans

    peer = FastKMeans(
        x.shape[1], len(start), niter=iterations, tol=-1, max_points_per_centroid=None,
        gpu=torch.cuda.is_available(), verbose=False,
    )  # fmt: skip
    peer.train(x)
    return peer.centroids


def flash_kmeans(x, start, iterations):
    from flash_kmeans import batch_kmeans_Euclid

    rows, places = (torch.from_numpy(t)[None].cuda() for t in (x, start))
    found = batch_kmeans_Euclid(
        rows, n_clusters=len(start), max_iters=iterations, tol=-1.0, init_centroids=places
    )
    return found[1][0].float()


def by_means(rows, centers, iterations, nearest):
    """Ten lines of PyTorch around somebody's index of the nearest centre."""
    for _ in range(iterations):
        index = nearest(rows, centers)
        sums = torch.zeros_like(centers).index_add_(0, index, rows)
        counts = torch.bincount(index, minlength=len(centers))
        centers = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), centers)
    return centers


def plain(x, start, iterations):
    def nearest(rows, centers):
        return torch.cdist(rows, centers).argmin(1)

    return by_means(torch.from_numpy(x), torch.from_numpy(start), iterations, nearest)


def keops(x, start, iterations):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, centers = (torch.from_numpy(t).to(device) for t in (x, start))
    return by_means(rows, centers, iterations, keops_index).cpu()


# What a peer's own start or subsample keeps from being compared at the same start.
OWN_START = {"fastkmeans"}
PEERS = {
    "scikit-learn": Peer(sklearn, "sklearn"),
    "faiss": Peer(faiss, "faiss"),
    "fastkmeans": Peer(fastkmeans, "fastkmeans"),
    "flash-kmeans": Peer(flash_kmeans, "flash_kmeans", on_cpu=False),
    "keops": Peer(keops, "pykeops", most=6e9),
}


def providers(shape):
    """Name to function; a peer that cannot run here is named on the terminal and left out."""
    found = {"selftaught": ours, "torch": plain}
    if torch.cuda.is_available():
        found["selftaught, rows on the GPU"] = resident
    return found | present(PEERS, math.prod(shape))


def measure(kind, shape):
    rows, centers, width, iterations = shape
    x, start = data(kind, rows, centers, width)
    if torch.cuda.is_available():
        RESIDENT[id(x)] = torch.from_numpy(x).cuda()
    work, inertias = {}, {}

    def calling(function):
        def run():
            time.sleep(REST)
            return function(x, start, iterations)

        return run

    for name, function in providers(shape).items():
        try:
            inertias[name] = inertia(x, function(x, start, iterations))
            work[name] = calling(function)
        except Exception as error:
            print(f"{name}: skipped, {type(error).__name__}: {error}", file=sys.stderr)
    times = interleaved(work, ROUNDS, warm=0)
    for values in times.values():
        values[:] = [value - REST for value in values]
    base = inertias.get("scikit-learn", inertias["selftaught"])
    return [
        {
            "kernel": "kmeans",
            "provider": name,
            "mode": f"{kind}, {iterations} iterations",
            "shape": f"{rows}x{centers}x{width}",
            "dtype": "fp32",
            **summary(values),
            "scikit_learn_over_it": (
                median_ratio(times["scikit-learn"], values) if "scikit-learn" in times else ""
            ),
            "inertia_over_scikit_learn_minus_1": f"{inertias[name] / base - 1:.1e}",
            "same_start": name not in OWN_START,
        }
        for name, values in times.items()
    ]


def main():
    rows = []
    for shape in SHAPES:
        for kind in ("groups", "noise"):
            for row in measure(kind, shape):
                print(row, flush=True)
                rows.append(row)
    print(write("kmeans", rows), draw("kmeans"))


if __name__ == "__main__":
    main()
