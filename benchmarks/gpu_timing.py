"""What a GPU takes for a step, and what its host does: replayed graphs, launches, ceilings.

Everything here also runs on a CPU, without graphs and with its own clock, to be rehearsed there.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.measure import extra_megabytes, seconds

Step = Callable[[], object]
Loss = Callable[..., Tensor]
MODES = ("forward", "backward", "full")
BUDGET = 0.15  # seconds of replays of one figure
LEAST, MOST = 3, 300  # replays


class Ceiling(NamedTuple):
    """Rates that nothing on this device exceeds, measured now.

    Attributes:
        tflops: of a large bf16 product.
        gb_per_s: of a copy within the device's memory, bytes read and written.
    """

    tflops: float
    gb_per_s: float


class Figures(NamedTuple):
    """What a step takes.

    Attributes:
        times: milliseconds of a step on the device, of every replay.
        replayed: as a graph; else step by step, with the gaps in which the device waits.
        launches: kernels, copies and fills of a step; None on a CPU.
        host_ms: until the step is enqueued.
        extra_mb: peak memory above the inputs, gradients included.
    """

    times: list[float]
    replayed: bool
    launches: int | None
    host_ms: float
    extra_mb: float | None


def ceilings(device: torch.device) -> Ceiling:
    """The device's ceilings; small ones on a CPU."""
    size, many = (8192, 1 << 30) if device.type == "cuda" else (256, 1 << 20)
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(many, device=device)
    target = torch.empty_like(source)
    product = statistics.median(replays([lambda: a @ b])[0])
    copy = statistics.median(replays([lambda: target.copy_(source)])[0])
    return Ceiling(2e-9 * size**3 / product, 8e-6 * many / copy)


def leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Those of a step's inputs that have a gradient."""
    return [tensor for tensor in tensors if tensor.requires_grad]


def steps(loss: Loss, sets: Sequence[Sequence[Tensor]], mode: str) -> list[Step]:
    """A step for each set of inputs; a backward's forward is computed here, on this stream."""
    if mode == "forward":
        return [lambda one=one: loss(*one) for one in sets]
    if mode == "full":
        return [lambda one=one: torch.autograd.grad(loss(*one), leaves(one)) for one in sets]
    values = [(loss(*one), leaves(one)) for one in sets]
    return [
        lambda value=value, by=by: torch.autograd.grad(value, by, retain_graph=True)
        for value, by in values
    ]


def _capture(work: Sequence[Step], stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    with torch.cuda.stream(stream):
        for one in (work[0], *work):  # compiles, and lets every lazy part begin
            one()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for one in work:
            one()
    return graph


def replays(work: Sequence[Step], stream: "torch.cuda.Stream | None" = None):
    """Milliseconds of a step from replays of a graph that holds all of `work`; was it a graph."""
    graph = None
    if torch.cuda.is_available():
        try:
            graph = _capture(work, stream or torch.cuda.Stream())
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:  # it waits for the device, or a peer does
            print(f"no graph: {str(error).splitlines()[0]}", flush=True)
            torch.cuda.synchronize()

    def run() -> None:
        if graph is not None:
            graph.replay()
            return
        for one in work:
            one()

    if not torch.cuda.is_available():
        return [_milliseconds(run) / len(work)], False
    run()
    count = min(MOST, max(LEAST, round(1000 * BUDGET / max(_milliseconds(run), 1e-3))))
    return [_milliseconds(run) / len(work) for _ in range(count)], graph is not None


def _milliseconds(run: Callable[[], None]) -> float:
    if not torch.cuda.is_available():
        return 1000 * seconds(run)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def launches(step: Step) -> int | None:
    """What the device was given to do in a step: kernels, copies and fills."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    cuda = torch.cuda.is_available()
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=kinds) as profiler:
        step()
        if cuda:
            torch.cuda.synchronize()
    on_device = [e for e in profiler.events() if e.device_type == DeviceType.CUDA]
    # Marked ranges are shown on the device too.
    found = [e for e in on_device if not getattr(e, "is_user_annotation", False)]
    return len(found) if cuda else None


def host_milliseconds(step: Step) -> float:
    """Median time until a step is enqueued on an idle device."""
    times = []
    for _ in range(10):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        times.append(1000 * (time.perf_counter() - start))
    torch.cuda.synchronize()
    return statistics.median(times)


def figures(loss: Loss, sets: Sequence[Sequence[Tensor]], mode: str) -> Figures:
    """All figures of a loss in a mode of `MODES`, with one set of inputs after the other.

    Args:
        loss: of the tensors of a set, 0-d.
        sets: tensors; gradients are taken by those that require one.
        mode: forward, backward or full.
    """
    stream = None
    if torch.cuda.is_available():
        # Autograd runs a backward on its forward's stream, which has to be the captured one.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work = steps(loss, sets, mode)
            one = steps(loss, sets[:1], mode)[0]
    else:
        work = steps(loss, sets, mode)
        one = work[0]
    times, replayed = replays(work, stream)
    return Figures(
        times=times,
        replayed=replayed,
        launches=launches(one) if mode == "full" else None,
        host_ms=host_milliseconds(one) if stream else times[0],
        extra_mb=extra_megabytes(one) if stream else None,
    )
