"""What the machines do while a stage trains: speed, waiting, memory, arithmetic and traces."""

import contextlib
import os
import resource
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from selftaught import distributed
from selftaught.errors import MachineError
from selftaught.files import machine_errors
from selftaught.methods import Task
from selftaught.training.config import EngineConfig
from selftaught.training.engine import Batch, Engine
from selftaught.training.progress import Reporter


def count_flops(task: Task, views: Tensor) -> float:
    """Floating-point operations to learn from one image, forward and backward.

    Counted by torch for one view, in eval mode; a multiply-add counts as two. Losses, norms and
    the optimizer are left out. 0 where the task has no features.

    Args:
        task: on its device.
        views: (B, V, 1, S, S), on its device; only the shape of an image matters.
    """
    training = task.training
    task.eval()
    parameters = [p for p in task.parameters() if p.requires_grad]
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        features = task.features(views[:1, 0])
        if features is not None:
            torch.autograd.grad(features[1].sum(), parameters, allow_unused=True)
    task.train(training)
    return float(counter.get_total_flops() * views.shape[1])


def peak_memory_gib(device: torch.device) -> float:
    """Most memory that was held so far: of the device's tensors, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


# What each rank measures.
FIGURES = ("images_per_s", "data_wait", "own_s", "peak_memory_gib")


class Watch:
    """Clocks, counters and the profiler of one stage.

    Args:
        engine: holds task and device.
        stage: name of the stage.
        steps: of the whole stage.
        options: `peak_tflops` and `profile`.
        reporter: where notes go; traces go beside its metrics.jsonl.
    """

    def __init__(
        self, engine: Engine, stage: str, steps: int, options: EngineConfig, reporter: Reporter
    ) -> None:
        self.task, self.stage, self.options, self.reporter = engine.task, stage, options, reporter
        self.device = next(engine.task.parameters()).device
        self.folder = reporter.path.parent / "profile"
        self.window = options.profile_window
        self.profiler: torch.profiler.profile | None = None
        self.flops = 0.0
        self.cuda = self.device.type == "cuda"
        self.start_epoch()
        if self.window and self.window.start >= steps:
            reporter.warn(
                stage, f"engine.profile is {options.profile}, but the stage has {steps} steps"
            )
        elif self.window and self.device.type == "cuda":
            torch.cuda.memory._record_memory_history(max_entries=100_000, stacks="python")

    def __enter__(self) -> "Watch":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end_trace()
        if isinstance(error, torch.OutOfMemoryError):
            raise self._out_of_memory(error) from error

    def start_epoch(self, images: int = 0) -> None:
        """Set the clocks to zero; `images` are already at hand."""
        self.clock, self.waited, self.images = time.monotonic(), 0.0, images
        self.own_seconds, self.own_steps = 0.0, 0
        self.events: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    def begin(self, batch: Batch, step: int) -> None:
        """Count the arithmetic of the first batch's shape, met at the 0-based `step`."""
        self.flops = count_flops(self.task, batch["views"]) if "views" in batch else 0
        if not self.flops:
            return
        peak = self.options.peak_tflops
        named = {"peak_tflops": peak} if peak else {}
        self.reporter.log(
            kind="note", stage=self.stage, step=step, gflop_per_image=self.flops / 1e9, **named
        )

    def next(self, source: Iterator[Batch], step: int) -> Batch:
        """The next batch of this rank, for the 0-based `step`; the wait for it is counted."""
        if step in self.window and self.profiler is None:
            self._start_trace()
        asked = time.monotonic()
        batch = next(source)
        waited = time.monotonic() - asked
        self.waited += waited
        self.own_seconds += waited
        self.own_steps += 1
        self.images += batch["ids"].shape[0]
        return batch

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """A forward pass: what this rank spent itself, not waiting for others.

        A GPU's time is read between two events once it has passed them, without a wait.
        """
        began, blocked = time.monotonic(), distributed.blocked_seconds()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if self.cuda else []
        if events:
            events[0].record()
        yield
        if events:
            events[1].record()
            self.events.append((events[0], events[1]))
        else:
            others = distributed.blocked_seconds() - blocked
            self.own_seconds += time.monotonic() - began - others

    def done(self, step: int) -> None:
        """`step`, 0-based, is done."""
        while self.events and self.events[0][1].query():
            first, last = self.events.popleft()
            self.own_seconds += first.elapsed_time(last) / 1e3
        if self.profiler is not None and step == self.window[-1]:
            self._end_trace()

    def figures(self) -> dict[str, float]:
        """This rank's figures since the epoch began."""
        elapsed = max(time.monotonic() - self.clock, 1e-9)
        return {
            "images_per_s": self.images / elapsed,
            "data_wait": self.waited / elapsed,
            "own_s": self.own_seconds / max(self.own_steps, 1),
            "peak_memory_gib": peak_memory_gib(self.device),
        }

    def progress(self, everyone: Sequence[Any]) -> dict[str, float]:
        """What the bar shows: all ranks' speed and the first rank's wait."""
        speed = sum(one.images_per_s for one in everyone)
        return {"images_per_s": speed, "data_wait": everyone[0].data_wait}

    def summary(self, everyone: Sequence[Any], ranks: bool) -> dict[str, Any]:
        """Figures for metrics.jsonl out of every rank's own.

        Args:
            everyone: of every rank, an object with the figures of `figures` as attributes.
            ranks: whether to list each rank's figures too.
        """
        columns = {name: [getattr(one, name) for one in everyone] for name in FIGURES}
        total = sum(columns["images_per_s"])
        figures: dict[str, Any] = {
            "images_per_s": total,
            "data_wait": sum(columns["data_wait"]) / len(everyone),
            "slowest_rank": max(range(len(everyone)), key=columns["own_s"].__getitem__),
            "peak_memory_gib": max(columns["peak_memory_gib"]),
        }
        if self.flops and self.options.peak_tflops:
            peak = self.options.peak_tflops * 1e12 * len(everyone)
            figures["mfu"] = total * self.flops / peak
        return figures | ({"ranks": columns} if ranks else {})

    def report(self, summary: dict[str, Any]) -> None:
        """Print what an epoch's summary says, for the person who watches."""
        ranks = distributed.world_size()
        parts = [
            f"{self.stage}: {float(format(summary['images_per_s'], '.3g')):,g} images/s",
            f"{summary['data_wait']:.0%} of the time waiting for data",
            f"{summary['peak_memory_gib']:.3g} GiB at most on a rank",
        ]
        if ranks > 1:
            parts[0] += f" on {ranks} ranks"
            parts.append(f"rank {summary['slowest_rank']} the slowest")
        if "mfu" in summary:
            parts.append(f"MFU {summary['mfu']:.1%} of {self.options.peak_tflops:g} TFLOP/s a rank")
        self.reporter.say(", ".join(parts))

    def _start_trace(self) -> None:
        # Its library writes lines of its own to stderr, on a machine without a GPU an error.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        self.profiler = torch.profiler.profile(activities=kinds)
        self.profiler.start()

    def _end_trace(self) -> None:
        if self.profiler is None:
            return
        self.profiler.stop()
        path = self._path(f"{self.options.profile}.json")
        with machine_errors(path):
            self.profiler.export_chrome_trace(str(path))
        steps = self.options.profile
        self.reporter.say(f"{self.stage}: trace of steps {steps}, for ui.perfetto.dev: {path}")
        self.profiler = None
        # One window, one trace.
        self.window = range(0)

    def _path(self, ending: str) -> Path:
        with machine_errors(self.folder):
            self.folder.mkdir(exist_ok=True)
        return self.folder / f"{self.stage}-rank{distributed.rank()}-{ending}"

    def _out_of_memory(self, error: torch.OutOfMemoryError) -> MachineError:
        reason = " ".join(str(error).split())
        path = self._path("out-of-memory.pickle")
        torch.cuda.memory._dump_snapshot(str(path))
        return MachineError(
            f"{self.stage}: rank {distributed.rank()} is out of memory; lower the batch size or "
            f"raise engine.accumulate; what held the memory is in {path}: {reason}"
        )
