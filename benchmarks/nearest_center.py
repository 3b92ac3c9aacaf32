"""Nearest centre and MAD loss: every backend here against the code people have today.

python -m benchmarks.nearest_center
"""

import math
import sys
from functools import partial

import torch

from benchmarks.measure import interleaved, median_ratio, summary
from benchmarks.peers import Compiled, Peer, new_shape, present
from benchmarks.plot import draw
from benchmarks.record import write
from selftaught.kernels import BACKENDS, dispatch
from selftaught.losses import mad_loss, nearest_center

SHAPES = [(4_096, 100, 128), (65_536, 100, 128), (65_536, 1_000, 128), (65_536, 100, 512)]
ROUNDS, SPREAD, EPS = 9, 0.1, 1e-6
REST = 0.05  # seconds before each call


def loss_of(squared, labels):
    known = torch.where(labels == 1, squared + EPS, 1 / (squared + EPS))
    return torch.where(labels == 0, squared, known).mean()


def with_gradient(squared_distance):
    """The MAD loss on somebody's squared distance, forward and backward."""

    def run(x, centers, labels):
        loss = loss_of(squared_distance(x, centers), labels)
        return torch.autograd.grad(loss, x)[0]

    return run


def without_gradient(squared_distance):
    def run(x, centers, labels):
        del labels
        with torch.no_grad():
            return squared_distance(x.detach(), centers)

    return run


def cdist(x, centers):
    return torch.cdist(x, centers).min(1).values.square()


def expansion(x, centers):
    scores = torch.addmm(centers.square().sum(1), x, centers.T, alpha=-2)
    return (scores.min(1).values + x.square().sum(1)).clamp(min=0)


def of_index(nearest):
    """Squared distance for a library that gives the index only, as its user would go on."""

    def squared_distance(x, centers):
        index = nearest(x.detach(), centers)
        return (x - centers[index]).square().sum(1)

    return squared_distance


def keops(x, centers):
    from pykeops.torch import LazyTensor

    rows, columns = LazyTensor(x[:, None]), LazyTensor(centers[None])
    return ((rows - columns) ** 2).sum(-1).argmin(1)[:, 0]


def fastkmeans(x, centers):
    from fastkmeans import FastKMeans

    peer = FastKMeans(x.shape[1], len(centers), gpu=x.is_cuda)
    peer.centroids = centers.cpu().numpy()
    return torch.from_numpy(peer.predict(x.cpu().numpy())).to(x.device)


def flash_kmeans(x, centers):
    from flash_kmeans.assign_euclid_triton import euclid_assign_triton

    return euclid_assign_triton(x[None], centers[None], x.square().sum(1)[None])[0].long()


def faiss(x, centers):
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(x.shape[1])
    index.add(centers.cpu().numpy())
    return torch.from_numpy(index.search(x.cpu().numpy(), 1)[0][:, 0])


def sklearn(x, centers):
    from sklearn.metrics import pairwise_distances_argmin_min

    found = pairwise_distances_argmin_min(x.cpu().numpy(), centers.cpu().numpy())
    return torch.from_numpy(found[1]).square()


BOTH_WAYS = {
    "keops": Peer(of_index(keops), "pykeops", most=2e9),
    "fastkmeans": Peer(of_index(fastkmeans), "fastkmeans"),
    "flash-kmeans": Peer(of_index(flash_kmeans), "flash_kmeans", on_cpu=False),
}
FORWARD_ONLY = {"faiss": Peer(faiss, "faiss"), "scikit-learn": Peer(sklearn, "sklearn")}


def ours(backend, mode):
    if mode == "forward":
        return without_gradient(lambda x, c: nearest_center(x, c, backend=backend)[0])

    def run(x, centers, labels):
        loss = mad_loss(x, centers, labels, eps=EPS, backend=backend)
        return torch.autograd.grad(loss, x)[0]

    return run


def providers(shape, mode, device):
    """Name to function; a peer that cannot run here is named on the terminal and left out."""
    wrap = without_gradient if mode == "forward" else with_gradient
    found = {
        "cdist": wrap(cdist),
        "cdist, torch.compile": wrap(Compiled(cdist)),
        "addmm": wrap(expansion),
    }
    peers = BOTH_WAYS | (FORWARD_ONLY if mode == "forward" else {})
    found |= {name: wrap(function) for name, function in present(peers, math.prod(shape)).items()}
    op = "nearest_center" if mode == "forward" else "mad"
    request = dispatch.Request(op=op, device=device, dtype=torch.float32, width=shape[2])
    for backend in BACKENDS:
        reason = dispatch.refusal(backend, request)
        if reason:
            print(f"selftaught {backend}: skipped, {reason}", file=sys.stderr)
        else:
            found[f"selftaught {backend}"] = ours(backend, mode)
    return found


def truth(x, centers, labels, mode):
    x64, centers64 = x.detach().double().requires_grad_(), centers.double()
    index = torch.cdist(x64.detach(), centers64).argmin(1)
    squared = (x64 - centers64[index]).square().sum(1)
    if mode == "forward":
        return squared.detach()
    return torch.autograd.grad(loss_of(squared, labels), x64)[0]


def worst_error(value, expected):
    """Largest relative error of a row: of its distance, or of its gradient as a vector."""
    value, expected = (
        t.double().reshape(len(t), -1) for t in (value.to(expected.device), expected)
    )
    return float(((value - expected).norm(dim=1) / expected.norm(dim=1)).max())


def measure(shape, mode, device):
    rows, many, width = shape
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(many, width, generator=generator)
    x = centers[torch.randint(many, (rows,), generator=generator)]
    x = (x + SPREAD * torch.randn(rows, width, generator=generator)).to(device).requires_grad_()
    labels = torch.randint(-1, 2, (rows,), generator=generator).to(device)
    inputs = (x, centers.to(device), labels)
    expected, work, errors = truth(*inputs, mode), {}, {}
    new_shape()
    for name, function in providers(shape, mode, device).items():
        try:
            errors[name] = worst_error(function(*inputs), expected)
            work[name] = partial(function, *inputs)
        except Exception as error:
            print(f"{name}: skipped, {type(error).__name__}: {error}", file=sys.stderr)
    times = interleaved(work, ROUNDS, warm=0, rest=REST)
    return [
        {
            "kernel": "nearest_center" if mode == "forward" else "mad_loss",
            "provider": name,
            "mode": mode,
            "shape": f"{rows}x{many}x{width}",
            "dtype": "fp32",
            **summary(values),
            "cdist_over_it": median_ratio(times["cdist"], values),
            "largest_relative_error": f"{errors[name]:.1e}",
        }
        for name, values in times.items()
    ]


def main():
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for shape in SHAPES:
        for mode in ("forward", "forward+backward"):
            for row in measure(shape, mode, device):
                print(row)
                rows.append(row)
    print(write("nearest_center", rows), draw("nearest_center"))


if __name__ == "__main__":
    main()
