"""Ranks of `selftaught run` as a launcher starts them, and faults injected into one of them.

The ranks are forked from one process that has imported torch, so that a start costs no seconds.
"""

import multiprocessing
import os
import signal
import time
import traceback
from pathlib import Path

from tests.ranks import free_port

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "tests.faults.ranks",
        "selftaught.cli.run",
        "selftaught.training.run",
        # Imported by a run when it comes to need them, seconds each.
        "torch._dynamo",
        "torch.utils.tensorboard",
        "torch.utils.flop_counter",
        "jsonargparse",
        "faiss",
        "matplotlib.pyplot",
        "sklearn.metrics",
        "sklearn.manifold",
        "scipy.stats",
    ]
)


class Started:
    """The ranks of one run; `errors[k]` is where rank k's stderr goes."""

    def __init__(self, processes, folder):
        self.processes, self.folder = processes, folder

    def end(self, timeout=120):
        """Exit codes, in rank order."""
        limit = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.0, limit - time.monotonic()))
            if process.exitcode is None:
                process.kill()
        return [process.exitcode for process in self.processes]

    def said(self, rank):
        """What a rank wrote to stderr."""
        return (self.folder / f"{rank}.err").read_text()


def start(folder, arguments, world, fault=None):
    """`selftaught run` on `world` ranks; `fault(rank)` runs in each of them first."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    processes = [
        CONTEXT.Process(target=_rank, args=(rank, world, port, folder, arguments, fault))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    return Started(processes, Path(folder))


def _rank(rank, world, port, folder, arguments, fault):
    handle = os.open(folder / f"{rank}.err", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    if world > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    from selftaught.cli.main import main

    torch.set_num_threads(1)
    try:
        if fault is not None:
            fault(rank)
        code = main(["run", *arguments])
    except BaseException:
        traceback.print_exc()
        code = 1
    # What interpreters do at their end, without this one's test framework.
    os._exit(code)


class SignalAt:
    """Sends a signal to rank `rank` when the loop called `loop` has done `done` steps."""

    def __init__(self, number, rank, loop, done):
        self.number, self.rank, self.loop, self.done = number, rank, loop, done

    def __call__(self, rank):
        from selftaught.training.progress import Reporter

        if rank != self.rank:
            return
        advance = Reporter.advance

        def advance_then_signal(reporter, name, done, total, **figures):
            advance(reporter, name, done, total, **figures)
            if (name, done) == (self.loop, self.done):
                print(f"sent at {time.time()}", flush=True)
                os.kill(os.getpid(), self.number)
                if self.number == signal.SIGSTOP:
                    time.sleep(0.1)

        Reporter.advance = advance_then_signal


class BadPixels:
    """Rank `rank` reads a NaN in the second image of the batch of 0-based `step`."""

    def __init__(self, rank, step):
        self.rank, self.step = rank, step

    def __call__(self, rank):
        from selftaught.training import loop

        if rank != self.rank:
            return
        optimize = loop.optimize

        def optimize_bad(engine, batch, lr, parts, files, step, watch):
            if step == self.step:
                batch["views"][1, 0, 0, 3, 3] = float("nan")
                print("bad file " + files(batch["ids"])[1], flush=True)
            return optimize(engine, batch, lr, parts, files, step, watch)

        loop.optimize = optimize_bad


class BadLoss:
    """The loss of rank `rank` is infinite at 0-based `step`."""

    def __init__(self, rank, step):
        self.rank, self.step = rank, step

    def __call__(self, rank):
        from selftaught.training import loop
        from selftaught.training.engine import TorchEngine

        if rank != self.rank:
            return
        forward, optimize = TorchEngine.forward, loop.optimize
        at = {}

        def optimize_counted(engine, batch, lr, parts, files, step, watch):
            at["step"] = step
            return optimize(engine, batch, lr, parts, files, step, watch)

        def forward_bad(engine, batch):
            out = forward(engine, batch)
            return out | {"loss": out["loss"] / 0} if at["step"] == self.step else out

        loop.optimize, TorchEngine.forward = optimize_counted, forward_bad
