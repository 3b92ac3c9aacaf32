"""NT-Xent and two-tower InfoNCE against their peers: time, memory, error against float64.

python -m benchmarks.ntxent [--quick]

Times are medians of interleaved rounds in one process; `vs_eager` is the median over rounds of
eager / provider. `gradient_error` is the length of the error over the length of the float64
gradient of the same inputs. A backward is timed many times after one forward; torch.compile is
left out where it would run eager. `tflops` counts the least work there is, 5 (2B)^2 D for NT-Xent
forward and backward. Kernel times on a GPU: `benchmarks.gpu_suite`.
"""

import argparse
import gc
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.contrastive_peers import Loss, eager_clip, eager_ntxent, providers
from benchmarks.measure import (
    extra_megabytes,
    interleaved,
    median_ratio,
    relative_error,
    summary,
)
from benchmarks.peers import graphs, new_shape
from benchmarks.plot import draw
from benchmarks.record import write

EAGER_LIMIT_CPU, EAGER_LIMIT_CUDA = 8192, 32768
SLOW, SLOW_LIMIT = ("reference", "metric-learning"), 4096
QUADRATIC = ("eager", "torch.compile", "lightly", "pytorch", "open_clip", "info-nce", "reference")


# The least work in units of (2B)^2 D: half a product of scores, then all of it and their weighing.
PRODUCTS = {"forward": 1, "backward": 4, "full": 5}


def inputs(
    rows: int, width: int, device: torch.device, noise: float, seed: int = 0
) -> list[Tensor]:
    """Two views of rows / 2 images; `noise` between them sets the loss."""
    generator = torch.Generator().manual_seed(rows + width + seed)
    shape = (rows // 2, width)
    point = torch.randn(shape, generator=generator)
    views = [point + noise * torch.randn(shape, generator=generator) for _ in range(2)]
    return [view.to(device).requires_grad_() for view in views]


def step(loss: Loss, views: list[Tensor], temperature: float) -> Tensor:
    for view in views:
        view.grad = None
    value = loss(*views, temperature)
    value.backward()
    return value


def truth(objective: str, views: list[Tensor], temperature: float) -> tuple[float, Tensor]:
    """Loss and gradient in float64 on the CPU by the plain formula."""
    double = [view.detach().double().cpu().requires_grad_() for view in views]
    eager = eager_ntxent if objective == "ntxent" else eager_clip
    if objective == "ntxent":  # eager ends in float32
        z = torch.nn.functional.normalize(torch.cat(double), dim=1)
        scores = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
        target = torch.arange(len(z)).roll(len(z) // 2)
        value = torch.nn.functional.cross_entropy(scores, target)
    else:
        value = eager(*double, temperature)
    value.backward()
    return float(value.detach()), torch.cat([view.grad for view in double])


def sampled_truth(views: list[Tensor], temperature: float, rows: Tensor) -> tuple[float, Tensor]:
    """The mean loss, and its gradient by some rows, in float64 on the views' device.

    Takes a block of the matrix at a time, and so serves sizes whose whole matrix fits nowhere.
    """
    raw = torch.cat([view.detach() for view in views]).double()
    length = raw.norm(dim=1, keepdim=True)
    unit, count = raw / length, len(raw)
    place = torch.arange(count, device=raw.device)

    def scores(some: Tensor) -> Tensor:
        found = unit[some] @ unit.T / temperature
        return found.masked_fill(some[:, None] == place, -torch.inf)

    block = max(1, 2**27 // count)
    log_sums = torch.cat([scores(some).logsumexp(1) for some in place.split(block)])
    positives = (unit * unit.roll(count // 2, 0)).sum(1) / temperature
    rows = rows.to(raw.device)
    partner, found = (rows + count // 2) % count, scores(rows)
    weights = (found - log_sums[rows, None]).exp() + (found - log_sums).exp()
    by_unit = (weights @ unit - 2 * unit[partner]) / (count * temperature)
    along = (by_unit * unit[rows]).sum(1, keepdim=True)
    return float((log_sums - positives).mean()), (by_unit - along * unit[rows]) / length[rows]


def errors(
    there: dict[str, Loss], objective: str, views: list[Tensor], temperature: float
) -> dict[str, tuple[float, float]]:
    """Relative error of loss and gradient of every provider."""
    value, gradient = truth(objective, views, temperature)
    found = {}
    for name, loss in there.items():
        own = float(step(loss, views, temperature).detach())
        whole = torch.cat([view.grad for view in views])
        found[name] = (abs(own - value) / abs(value), relative_error(whole, gradient))
    return found


def forward(loss: Loss, views: list[Tensor], temperature: float) -> None:
    with torch.no_grad():
        loss(*views, temperature)


def backward_of(loss: Loss, views: list[Tensor], temperature: float) -> Callable[[], object]:
    """The backward alone, of a forward that is computed here."""
    value = loss(*views, temperature)
    return lambda: torch.autograd.grad(value, views, retain_graph=True)


def works(name: str, loss: Loss, device: torch.device) -> str:
    """Why a provider cannot be used, "" where it can: it runs, and is compiled if it should be."""
    new_shape()
    try:
        step(loss, inputs(256, 128, device, 1.0), 0.5)
        if "compile" in name and not graphs():
            return "torch.compile made no graph"
    except Exception as error:  # a peer may fail in any way; it is named and left out
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
    return ""


def measure(objective: str, rows: int, width: int, device: torch.device, rounds: int):
    there, missing = providers(objective, width, device)
    for name in list(there):
        why = works(name, there[name], device)
        if why:
            missing[name] = why
            del there[name]
    limit = EAGER_LIMIT_CUDA if device.type == "cuda" else EAGER_LIMIT_CPU
    if rows > limit:
        for name in [n for n in there if any(word in n for word in QUADRATIC)]:
            missing[name] = f"builds the matrix, {rows}^2 entries"
            del there[name]
    if rows > SLOW_LIMIT and device.type == "cpu":
        for name in [n for n in there if any(word in n for word in SLOW)]:
            missing[name] = f"measured up to {SLOW_LIMIT} rows only, it takes long"
            del there[name]
    new_shape()
    temperature, views = 0.5, inputs(rows, width, device, 1.0)
    wrong: dict[str, tuple[float, float]] = {}
    small: dict[str, tuple[float, float]] = {}
    if rows <= EAGER_LIMIT_CPU:
        wrong = errors(there, objective, views, temperature)
        small = errors(there, objective, inputs(rows, width, device, 0.25), 0.07)
        for name in [n for n, (value, _) in wrong.items() if value > 0.02]:
            missing[name] = f"its loss is off by {wrong[name][0]:.1%}: another loss"
            del there[name]
    gc.collect()
    shape = f"{rows}x{width}"
    results = []
    for mode in PRODUCTS:
        if mode == "backward":
            work = {name: backward_of(loss, views, temperature) for name, loss in there.items()}
        else:
            run = forward if mode == "forward" else step
            work = {
                name: (lambda loss=loss, run=run: run(loss, views, temperature))
                for name, loss in there.items()
            }
        memory = {name: extra_megabytes(one) for name, one in work.items()}
        times = interleaved(work, rounds)
        for name, taken in times.items():
            row = {"kernel": objective, "provider": name, "mode": mode, "shape": shape}
            row |= {"dtype": "fp32", **summary(taken), "extra_mb": memory[name]}
            eager = times.get("eager")
            row["vs_eager"] = median_ratio(eager, taken) if eager else ""
            row["loss_error"], row["gradient_error"] = (
                (f"{e:.2e}" for e in wrong[name]) if wrong else ("", "")
            )
            row["gradient_error_small_loss"] = f"{small[name][1]:.2e}" if small else ""
            flops = PRODUCTS[mode] * rows**2 * width
            tflops = flops / (row["ms_median"] / 1000) / 1e12
            row["tflops"] = round(tflops, 3) if objective == "ntxent" else ""
            results.append(row)
            print({key: value for key, value in row.items() if value != ""}, flush=True)
    for name, why in missing.items():
        print(f"{objective} {shape}: {name} left out: {why}", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small shapes, few rounds")
    quick = parser.parse_args().quick
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if quick:
        plan = [("ntxent", 512, 128, 3), ("clip", 512, 128, 3)]
    elif device.type == "cuda":
        plan = [("ntxent", n, 128, 9) for n in (512, 2048, 4096, 8192, 16384, 65536)]
        plan += [("ntxent", 16384, d, 5) for d in (256, 768)]
        plan += [("ntxent", 262144, 128, 3), ("ntxent", 1048576, 128, 1)]
        plan += [("clip", n, 128, 7) for n in (4096, 16384)]
    else:
        plan = [("ntxent", n, 128, 101) for n in (128, 256, 512)]
        plan += [("ntxent", n, 128, 7) for n in (2048, 4096)]
        plan += [("ntxent", 8192, 128, 5), ("ntxent", 16384, 128, 3), ("ntxent", 32768, 128, 1)]
        plan += [("ntxent", 2048, 512, 5), ("clip", 4096, 128, 5)]
    results = []
    for objective, rows, width, rounds in plan:
        results += measure(objective, rows, width, device, rounds)
    if quick:
        return
    print(write("ntxent", results), draw("ntxent"))


if __name__ == "__main__":
    main()
