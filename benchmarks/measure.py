"""Times and memory that can be compared: interleaved rounds, medians, peak over the start."""

import contextlib
import ctypes
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

STATUS, REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")
Work = Callable[[], object]


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Work) -> float:
    """Time of one call, the device's work included."""
    _wait()
    start = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - start


def interleaved(
    work: dict[str, Work], rounds: int, warm: int = 1, rest: float = 0.0
) -> dict[str, list[float]]:
    """Seconds of `rounds` calls of each, taken in turn so that a slow moment hits all of them.

    `rest` seconds pass before each call: idle OpenMP threads of the one before spin for a while.
    """
    for _ in range(warm):
        for one in work.values():
            one()
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, one in work.items():
            time.sleep(rest)
            times[name].append(seconds(one))
    return times


def summary(times: list[float]) -> dict[str, float]:
    """Median and spread in milliseconds."""
    ordered = sorted(1000 * t for t in times)
    last = len(ordered) - 1
    return {
        "ms_median": round(statistics.median(ordered), 4),
        "ms_p20": round(ordered[round(0.2 * last)], 4),
        "ms_p80": round(ordered[round(0.8 * last)], 4),
    }


def median_ratio(slow: list[float], fast: list[float]) -> float:
    """Median over rounds of slow / fast."""
    return round(statistics.median(s / f for s, f in zip(slow, fast, strict=True)), 3)


def _status(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", STATUS.read_text())
    assert found
    return int(found[1]) * 1024


def extra_megabytes(work: Work) -> float | None:
    """Peak memory of a call above what was in use before it; None where it cannot be read."""
    if torch.cuda.is_available():
        _wait()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        _wait()
        return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)
    if not REFERENCES.exists():
        return None
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # or memory freed earlier would be used again unseen
    REFERENCES.write_text("5")  # the peak starts over from what is resident now
    before = _status("VmRSS")
    work()
    return round((_status("VmHWM") - before) / 2**20, 1)


def relative_error(value: torch.Tensor, truth: torch.Tensor) -> float:
    """Length of the error over the length of the truth, in float64."""
    value, truth = value.detach().double().cpu(), truth.detach().double().cpu()
    return float((value - truth).norm() / truth.norm().clamp(min=1e-300))
