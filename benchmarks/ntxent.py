"""NT-Xent and two-tower InfoNCE against their peers: time, memory, error against float64.

python -m benchmarks.ntxent [--quick]

Times are medians of interleaved rounds in one process; `vs_eager` is the median over rounds of
eager / provider. `gradient_error` is the length of the error over the length of the float64
gradient of the same inputs. On a GPU, `tflops` counts the least work there is, 5 (2B)^2 D for
NT-Xent forward and backward, and `share_of_matmul` divides by a bf16 product measured in this run.
"""

import argparse
import gc

import torch
from torch import Tensor

from benchmarks.contrastive_peers import Loss, eager_clip, eager_ntxent, providers
from benchmarks.measure import (
    extra_megabytes,
    interleaved,
    median_ratio,
    relative_error,
    seconds,
    summary,
)
from benchmarks.plot import draw
from benchmarks.record import write

EAGER_LIMIT_CPU, EAGER_LIMIT_CUDA = 8192, 32768
SLOW, SLOW_LIMIT = ("reference", "metric-learning"), 4096
QUADRATIC = ("eager", "torch.compile", "lightly", "pytorch", "open_clip", "info-nce", "reference")


def inputs(rows: int, width: int, device: torch.device, noise: float) -> list[Tensor]:
    """Two views of rows / 2 images; `noise` between them sets the loss."""
    generator = torch.Generator().manual_seed(rows + width)
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


def works(name: str, loss: Loss, device: torch.device) -> str:
    """Why a provider cannot be used, "" where it can: it runs, and its loss is the loss."""
    try:
        step(loss, inputs(256, 128, device, 1.0), 0.5)
    except Exception as error:  # a peer may fail in any way; it is named and left out
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
    return ""


def matmul_tflops(device: torch.device) -> float:
    """Rate of a large bf16 product."""
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    best = min(seconds(lambda: a @ a) for _ in range(10))
    return 2 * 8192**3 / best / 1e12


def measure(objective: str, rows: int, width: int, device: torch.device, rounds: int, rate: float):
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
    for mode, run in (("forward", forward), ("full", step)):
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
            flops = (5 if mode == "full" else 1) * rows**2 * width
            tflops = flops / (row["ms_median"] / 1000) / 1e12
            row["tflops"] = round(tflops, 3) if objective == "ntxent" else ""
            row["share_of_matmul"] = round(tflops / rate, 3) if rate and row["tflops"] else ""
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
    rate = matmul_tflops(device) if device.type == "cuda" else 0.0
    if quick:
        plan = [("ntxent", 512, 128, 3), ("clip", 512, 128, 3)]
    elif device.type == "cuda":
        plan = [("ntxent", n, 128, 9) for n in (512, 2048, 4096, 8192, 16384, 65536)]
        plan += [("ntxent", 16384, d, 5) for d in (256, 768)]
        plan += [("ntxent", 262144, 128, 3), ("ntxent", 1048576, 128, 1)]
        plan += [("clip", n, 128, 7) for n in (4096, 16384)]
    else:
        plan = [("ntxent", n, 128, 7) for n in (512, 2048, 4096)]
        plan += [("ntxent", 8192, 128, 5), ("ntxent", 16384, 128, 3), ("ntxent", 32768, 128, 1)]
        plan += [("ntxent", 2048, 512, 5), ("clip", 4096, 128, 5)]
    results = []
    for objective, rows, width, rounds in plan:
        results += measure(objective, rows, width, device, rounds, rate)
    if quick:
        return
    print(write("ntxent", results), draw("ntxent"))


if __name__ == "__main__":
    main()
