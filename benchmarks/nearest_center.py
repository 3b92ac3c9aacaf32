"""Nearest centre and MAD loss: every backend here against the code people have today.

python -m benchmarks.nearest_center
"""

import importlib.util
import statistics
import sys
import time

import torch

from benchmarks.record import write
from selftaught.kernels import BACKENDS, dispatch
from selftaught.losses import mad_loss, nearest_center

SHAPES = [(4_096, 100, 128), (65_536, 100, 128), (65_536, 1_000, 128), (65_536, 100, 512)]
ROUNDS, SPREAD, EPS = 9, 0.1, 1e-6
REST = 0.05  # seconds until idle OpenMP threads of the provider before stop spinning


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
            return squared_distance(x, centers)

    return run


def cdist(x, centers):
    return torch.cdist(x, centers).min(1).values.square()


def expansion(x, centers):
    scores = torch.addmm(centers.square().sum(1), x, centers.T, alpha=-2)
    return (scores.min(1).values + x.square().sum(1)).clamp(min=0)


def keops(x, centers):
    from pykeops.torch import LazyTensor

    rows, columns = LazyTensor(x.detach()[:, None]), LazyTensor(centers[None])
    index = ((rows - columns) ** 2).sum(-1).argmin(1)[:, 0]
    return (x - centers[index]).square().sum(1)


def faiss(x, centers):
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(x.shape[1])
    index.add(centers.cpu().numpy())
    return torch.from_numpy(index.search(x.detach().cpu().numpy(), 1)[0][:, 0])


def sklearn(x, centers):
    from sklearn.metrics import pairwise_distances_argmin_min

    found = pairwise_distances_argmin_min(x.detach().cpu().numpy(), centers.cpu().numpy())
    return torch.from_numpy(found[1]).square()


def ours(backend, mode):
    if mode == "forward":
        return without_gradient(lambda x, c: nearest_center(x, c, backend=backend)[0])

    def run(x, centers, labels):
        loss = mad_loss(x, centers, labels, eps=EPS, backend=backend)
        return torch.autograd.grad(loss, x)[0]

    return run


def providers(mode, device):
    """Name to function; a peer that is not installed is named on the terminal and left out."""
    wrap = without_gradient if mode == "forward" else with_gradient
    found = {
        "cdist": wrap(cdist),
        "cdist, torch.compile": wrap(torch.compile(cdist)),
        "addmm": wrap(expansion),
    }
    peers = {"pykeops": keops}
    if mode == "forward":
        peers |= {"faiss": faiss, "sklearn": sklearn}
    for name, function in peers.items():
        if importlib.util.find_spec(name) is None:
            print(f"{name}: skipped, not installed", file=sys.stderr)
        else:
            found[name] = wrap(function)
    op = "nearest_center" if mode == "forward" else "mad"
    request = dispatch.Request(op=op, device=device, dtype=torch.float32, width=128)
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


def seconds(function, inputs):
    time.sleep(REST)
    start = time.perf_counter()
    value = function(*inputs)
    if value.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start, value


def measure(shape, mode, device):
    rows, many, width = shape
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(many, width, generator=generator)
    x = centers[torch.randint(many, (rows,), generator=generator)]
    x = (x + SPREAD * torch.randn(rows, width, generator=generator)).to(device).requires_grad_()
    labels = torch.randint(-1, 2, (rows,), generator=generator).to(device)
    inputs = (x, centers.to(device), labels)
    expected, running, errors = truth(*inputs, mode), {}, {}
    for name, function in providers(mode, device).items():
        try:
            errors[name] = worst_error(seconds(function, inputs)[1], expected)
            running[name] = function
        except Exception as error:
            print(f"{name}: skipped, {type(error).__name__}: {error}", file=sys.stderr)
    times = {name: [] for name in running}
    for _ in range(ROUNDS):
        for name, function in running.items():
            times[name].append(seconds(function, inputs)[0])
    return [
        {
            "kernel": "nearest_center" if mode == "forward" else "mad_loss",
            "provider": name,
            "mode": mode,
            "shape": f"{rows}x{many}x{width}",
            "dtype": "fp32",
            "milliseconds_median": round(1000 * statistics.median(values), 3),
            "cdist_over_it_median": round(
                statistics.median(a / b for a, b in zip(times["cdist"], values, strict=True)), 2
            ),
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
    print(write("nearest_center", rows))


if __name__ == "__main__":
    main()
