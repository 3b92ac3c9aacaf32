"""What the machines do while a stage trains: speed, waiting, memory, arithmetic and traces."""

import contextlib
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from selftaught import distributed
from selftaught.errors import MachineError
from selftaught.files import machine_errors
from selftaught.training.config import EngineConfig
from selftaught.training.config_checks import profile_window
from selftaught.training.engine import Batch, Engine
from selftaught.training.progress import Reporter


def count_flops(embedder: nn.Module, views: Tensor) -> float:
    """Floating-point operations to learn from one image, forward and backward.

    Counted by torch for one view, in eval mode; a multiply-add counts as two. Losses, norms and
    the optimizer are left out.

    Args:
        embedder: image -> tensor or tuple of tensors.
        views: (B, V, 1, S, S), on its device; only the shape of an image matters.
    """
    training = embedder.training
    embedder.eval()
    parameters = [p for p in embedder.parameters() if p.requires_grad]
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        out = embedder(views[:1, 0])
        last = out[-1] if isinstance(out, tuple) else out
        torch.autograd.grad(last.sum(), parameters, allow_unused=True)
    embedder.train(training)
    return float(counter.get_total_flops() * views.shape[1])


def peak_memory_gib(device: torch.device) -> float:
    """Most memory that was held so far: of the device's tensors, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


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
        self.window = profile_window(options.profile)
        self.profiler: torch.profiler.profile | None = None
        self.flops = 0.0
        self.timed = False
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

    def begin(self, batch: Batch, step: int) -> None:
        """Count the arithmetic of the first batch's shape, met at the 0-based `step`."""
        if not hasattr(self.task, "embedder"):
            return
        self.flops = count_flops(self.task.embedder, batch["views"])
        peak = self.options.peak_tflops
        named = {"peak_tflops": peak} if peak else {}
        self.reporter.log(
            kind="note", stage=self.stage, step=step, gflop_per_image=self.flops / 1e9, **named
        )

    def next(self, source: Iterator[Batch], step: int, timed: bool) -> Batch:
        """The next batch; the wait for it is counted.

        Args:
            source: of this rank's batches.
            step: 0-based, of the stage.
            timed: whether this step also compares the ranks.
        """
        if step in self.window and self.profiler is None:
            self._start_trace()
        asked, self.timed = time.monotonic(), timed
        batch = next(source)
        self.step_waited = time.monotonic() - asked
        self.waited += self.step_waited
        self.images += batch["ids"].shape[0]
        return batch

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """A forward pass; on timed steps, what this rank spent itself, not waiting for others."""
        if not self.timed:
            yield
            return
        began, blocked = time.monotonic(), distributed.blocked_seconds()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        others = distributed.blocked_seconds() - blocked
        self.own_seconds += self.step_waited + time.monotonic() - began - others
        self.own_steps += 1
        self.step_waited = 0.0
        # Ranks leave together, so that nobody's backward pass pays for another's lateness.
        distributed.barrier()

    def done(self, step: int) -> None:
        """`step`, 0-based, is done."""
        if self.profiler is not None and step == self.window[-1]:
            self._end_trace()

    def own(self) -> dict[str, float]:
        """This rank's figures since the epoch began."""
        elapsed = max(time.monotonic() - self.clock, 1e-9)
        return {
            "images_per_s": self.images / elapsed,
            "data_wait": self.waited / elapsed,
            "own_s": self.own_seconds / max(self.own_steps, 1),
            "peak_memory_gib": peak_memory_gib(self.device),
        }

    def progress(self) -> dict[str, float]:
        """What the bar shows: all ranks' speed and this rank's wait, as this rank sees them."""
        own = self.own()
        speed = own["images_per_s"] * distributed.world_size()
        return {"images_per_s": speed, "data_wait": own["data_wait"]}

    def summary(self, everyone: list[dict[str, float]], ranks: bool) -> dict[str, Any]:
        """Figures for metrics.jsonl out of every rank's own.

        Args:
            everyone: `own` of every rank.
            ranks: whether to list each rank's figures too.
        """
        columns = {name: [one[name] for one in everyone] for name in everyone[0]}
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

    def tell(self, summary: dict[str, Any]) -> None:
        """Print what an epoch's summary says, for the person who watches."""
        ranks = distributed.world_size()
        told = [
            f"{self.stage}: {float(format(summary['images_per_s'], '.3g')):,g} images/s",
            f"{summary['data_wait']:.0%} of the time waiting for data",
            f"{summary['peak_memory_gib']:.3g} GiB at most on a rank",
        ]
        if ranks > 1:
            told[0] += f" on {ranks} ranks"
            told.append(f"rank {summary['slowest_rank']} the slowest")
        if "mfu" in summary:
            told.append(f"MFU {summary['mfu']:.1%} of {self.options.peak_tflops:g} TFLOP/s a rank")
        self.reporter.say(", ".join(told))

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
        told = " ".join(str(error).split())
        path = self._path("out-of-memory.pickle")
        torch.cuda.memory._dump_snapshot(str(path))
        return MachineError(
            f"{self.stage}: rank {distributed.rank()} is out of memory; lower the batch size or "
            f"raise engine.accumulate; what held the memory is in {path}: {told}"
        )
