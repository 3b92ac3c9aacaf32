"""Ranks of `selftaught run` as a launcher starts them, and faults injected into one of them.

The ranks are forked from one process that has imported torch, so that a start costs no seconds.
Unless they are to be `whole`, their encoder is a thin one and their report has empty pictures:
everything else, from the first option to the exit code, is what a user starts.
"""

import importlib
import json
import multiprocessing
import os
import signal
import threading
import time
import traceback
from pathlib import Path

from tests.ranks import free_port

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "tests.faults.no_gpu",
        "pytest",
        "tests.faults.ranks",
        "selftaught.cli.run",
        "selftaught.training.run",
        "selftaught.data.prepare.job",
        # Imported by a run when it comes to need them, seconds each.
        "deepspeed",
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

    def end(self, timeout=400):
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


def start(folder, arguments, world, fault=None, port=None, whole=False, command="run"):
    """`selftaught run` on `world` ranks; `fault(rank)` runs in each of them first."""
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    faults = [one for one in (None if whole else be_lean, fault) if one]
    words = [command, *arguments]
    processes = [
        CONTEXT.Process(target=_rank, args=(rank, world, port, folder, words, faults))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    return Started(processes, Path(folder))


def _rank(rank, world, port, folder, words, faults):
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
    import torch

    from selftaught.cli.main import main

    torch.set_num_threads(1)
    try:
        for fault in faults:
            fault(rank)
        code = main(words)
    except BaseException:
        traceback.print_exc()
        code = 1
    # What interpreters do at their end, without this one's test framework.
    os._exit(code)


def be_lean(rank):
    """A ResNet-18 of an eighth of the width, and pictures that nobody draws."""
    import torchvision
    from matplotlib.figure import Figure
    from torchvision.models.resnet import BasicBlock, ResNet

    from selftaught.training import stages

    class Thin(ResNet):
        def _make_layer(self, block, planes, blocks, *more, **named):
            return super()._make_layer(block, planes // 8, blocks, *more, **named)

    def thin(weights=None):
        network = Thin(BasicBlock, [2, 2, 2, 2])
        network.fc.in_features = 64
        return network

    torchvision.models.resnet18 = thin
    stages.ENCODER_WIDTH["resnet18"] = 64
    Figure.savefig = lambda *_, **__: None


class SignalDuring:
    """Sends a signal to rank `rank` while rank 0 works alone, for a minute unless it is ended.

    Args:
        work: a key of `LONE_WORK`.
        folder: where rank 0 tells the other that it began.
    """

    def __init__(self, number, rank, work, folder):
        self.number, self.rank, self.began = number, rank, folder / f"{work} began"
        self.module, self.name = LONE_WORK[work]

    def __call__(self, rank):
        self.began.unlink(missing_ok=True)
        if rank == 0:
            setattr(importlib.import_module(self.module), self.name, self.work)
        if rank == self.rank:
            threading.Thread(target=self.send, daemon=True).start()

    def work(self, *_, **__):
        self.began.touch()
        end = time.monotonic() + 60
        while time.monotonic() < end:
            time.sleep(0.02)
        raise AssertionError("not ended")

    def send(self):
        while not self.began.exists():
            time.sleep(0.02)
        send(self.number)


LONE_WORK = {
    "k-means": ("selftaught.training.finetune", "kmeans"),
    "neighbours": ("selftaught.training.run", "knn_score"),
    "metrics": ("selftaught.training.run", "evaluate"),
    "report": ("selftaught.training.run", "write_report"),
}
# The parts of a whole run, in order, and the functions that do them.
STAGES = {
    "prepare": ("selftaught.training.run", "use_prepared"),
    "split": ("selftaught.training.run", "split_images"),
    "pretext": ("selftaught.training.pretext", "train"),
    "centres": ("selftaught.training.finetune", "initial_centers"),
    "finetune": ("selftaught.training.finetune", "train"),
    "model": ("selftaught.training.run", "_write_model"),
    "score": ("selftaught.training.run", "score"),
    "metrics": ("selftaught.training.run", "write_metrics"),
    "report": ("selftaught.training.run", "write_report"),
}
SHARD = "shard of prepare"


def _around(stage, before, after):
    """Call `before` and `after` around the function that does `stage`."""
    module, name = (STAGES | {SHARD: ("selftaught.data.prepare.job", "work_shard")})[stage]
    module = importlib.import_module(module)
    function = getattr(module, name)

    def surrounded(*arguments, **named):
        before()
        try:
            return function(*arguments, **named)
        finally:
            after()

    setattr(module, name, surrounded)


class Timed:
    """Writes the seconds that each stage takes to `path` (JSON)."""

    def __init__(self, path):
        self.path = path

    def __call__(self, rank):
        self.seconds = dict.fromkeys(STAGES, 0.0)
        for stage in STAGES:
            _around(stage, self.begin, lambda stage=stage: self.end(stage))

    def begin(self):
        self.since = time.monotonic()

    def end(self, stage):
        self.seconds[stage] += time.monotonic() - self.since
        self.path.write_text(json.dumps(self.seconds))


class KillIn:
    """Kill -9 of the process and those it started, seconds after it first began a stage."""

    def __init__(self, stage, seconds):
        self.stage, self.seconds = stage, seconds

    def __call__(self, rank):
        self.armed = False
        os.setsid()
        _around(self.stage, self.arm, lambda: None)

    def arm(self):
        if not self.armed:
            self.armed = True
            threading.Thread(target=self.kill, daemon=True).start()

    def kill(self):
        time.sleep(self.seconds)
        os.killpg(os.getpid(), signal.SIGKILL)


class KillAfter:
    """Kill -9 of the process when it has done a stage."""

    def __init__(self, stage):
        self.stage = stage

    def __call__(self, rank):
        _around(self.stage, lambda: None, lambda: os.kill(os.getpid(), signal.SIGKILL))


class At:
    """Calls `act` in rank `rank` when the loop called `loop` has done `done` steps."""

    def __init__(self, rank, loop, done, act, *arguments):
        self.rank, self.loop, self.done, self.act, self.arguments = rank, loop, done, act, arguments

    def __call__(self, rank):
        from selftaught.training.progress import Reporter

        if rank != self.rank:
            return
        advance = Reporter.advance

        def advance_and_act(reporter, name, done, total, **figures):
            advance(reporter, name, done, total, **figures)
            if (name, done) == (self.loop, self.done):
                self.act(*self.arguments)

        Reporter.advance = advance_and_act


def send(number):
    """The signal to this process itself, told to stdout."""
    print(f"sent at {time.time()}", flush=True)
    os.kill(os.getpid(), number)


class BadNumber:
    """Rank `rank` meets a number that is not finite at 0-based `step`."""

    def __init__(self, rank, step):
        self.rank, self.step = rank, step

    def __call__(self, rank):
        from selftaught.training import loop

        if rank != self.rank:
            return
        optimize = loop.optimize

        def spoil_and_optimize(engine, batch, lr, parts, files, step, watch):
            if step == self.step:
                self.spoil(engine, batch, files)
            return optimize(engine, batch, lr, parts, files, step, watch)

        loop.optimize = spoil_and_optimize

    def spoil(self, engine, batch, files):
        """Put it there; the run does not outlive the step."""
        raise NotImplementedError


class BadPixels(BadNumber):
    """A NaN in the second image of the batch."""

    def spoil(self, engine, batch, files):
        batch["views"][1, 0, 0, 3, 3] = float("nan")
        print("bad file " + files(batch["ids"])[1], flush=True)


class BadLoss(BadNumber):
    """An infinite loss."""

    def spoil(self, engine, batch, files):
        forward = engine.forward

        def divided_by_zero(batch):
            out = forward(batch)
            return out | {"loss": out["loss"] / 0}

        engine.forward = divided_by_zero


class BadGradient(BadNumber):
    """A NaN gradient that reaches the embeddings."""

    def spoil(self, engine, batch, files):
        def hook(module, inputs, outputs):
            outputs[1].register_hook(lambda gradient: gradient * float("nan"))

        engine.task.embedder.register_forward_hook(hook)
