"""Faults and other things injected into a rank: called in it with its number before it starts."""

import hashlib
import importlib
import json
import os
import signal
import threading
import time


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
    "split": ("selftaught.training.beginning", "make_split"),
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
    """Kill -9 of the process and those it started, in a stage.

    Args:
        stage: a key of `STAGES`, or `SHARD`.
        seconds: from its first beginning to the kill, which comes at its end at the latest.
    """

    def __init__(self, stage, seconds=3600.0):
        self.stage, self.seconds = stage, seconds

    def __call__(self, rank):
        os.setsid()
        _around(self.stage, self.arm, self.kill)

    def arm(self):
        threading.Thread(target=self.wait_and_kill, daemon=True).start()

    def wait_and_kill(self):
        time.sleep(self.seconds)
        self.kill()

    def kill(self):
        os.killpg(os.getpid(), signal.SIGKILL)


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


class InValidation:
    """The signal `number` to rank `rank` in a validation of fine-tuning.

    Args:
        number: of the signal.
        rank: who gets it.
        turn: 0-based, which validation of this process.
        batch: 0-based, of those that it embeds.
    """

    def __init__(self, number, rank, turn=0, batch=1):
        self.number, self.rank, self.turn, self.batch = number, rank, turn, batch

    def __call__(self, rank):
        if rank != self.rank:
            return
        from selftaught.training.finetune import FinetuneStage

        from selftaught.training.inputs import Images

        self.turns, self.batches = -1, 0
        scores, skipped = FinetuneStage._validation_scores, Images.skipped

        def begin(stage):
            self.turns, self.batches = self.turns + 1, 0
            return scores(stage)

        def look(images, stage, *arguments):
            if stage == "validation":
                if (self.turns, self.batches) == (self.turn, self.batch):
                    send(self.number)
                self.batches += 1
            skipped(images, stage, *arguments)

        FinetuneStage._validation_scores, Images.skipped = begin, look


def send(number):
    """The signal to this process itself, told to stdout."""
    print(f"sent at {time.time()}", flush=True)
    os.kill(os.getpid(), number)


class EachStep:
    """Calls `at` before every optimizer step of a rank."""

    def __call__(self, rank):
        from selftaught.training import loop

        optimize = loop.optimize

        def look_and_optimize(engine, batch, lr, parts, files, step, watch):
            self.at(step, engine, batch, files)
            return optimize(engine, batch, lr, parts, files, step, watch)

        loop.optimize = look_and_optimize

    def at(self, step, engine, batch, files):
        raise NotImplementedError


class Recording(EachStep):
    """Writes what each step is given, image by image, to a file for each rank in `folder`."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, rank):
        self.folder.mkdir(exist_ok=True)
        self.path = self.folder / f"{rank}"
        super().__call__(rank)

    def at(self, step, engine, batch, files):
        with self.path.open("a") as handle:
            for name, views in zip(files(batch["ids"]), batch["views"], strict=True):
                digest = hashlib.sha256(views.numpy().tobytes()).hexdigest()
                print(step, name, len(views), digest, file=handle)

    def lines(self):
        """What all ranks were given, sorted."""
        return sorted(
            line for path in self.folder.iterdir() for line in path.read_text().splitlines()
        )


class BadNumber(EachStep):
    """Rank `rank` meets a number that is not finite.

    Args:
        rank: who meets it.
        step: 0-based.
        stage: whose step.
        part: 0-based micro-batch that it is in.
        parts: micro-batches of a step.
    """

    def __init__(self, rank, step, stage="pretext", part=0, parts=1):
        self.rank, self.step, self.stage, self.part, self.parts = rank, step, stage, part, parts

    def __call__(self, rank):
        if rank == self.rank:
            super().__call__(rank)

    def at(self, step, engine, batch, files):
        if step == self.step and type(engine.task).__name__ == f"{self.stage.title()}Task":
            self.passes = 0
            chunk = batch["ids"].chunk(self.parts)[self.part]
            print("images " + " ".join(files(chunk)), flush=True)
            self.spoil(engine, batch, files)

    def here(self):
        """Whether this forward pass is one of that micro-batch."""
        self.passes += 1
        return (self.passes - 1) % self.parts == self.part

    def spoil(self, engine, batch, files):
        """Put it there; the run does not outlive the step."""
        raise NotImplementedError


class BadPixels(BadNumber):
    """A NaN in the second image of the micro-batch."""

    def spoil(self, engine, batch, files):
        image = self.part * len(batch["ids"]) // self.parts + 1
        batch["views"][image, 0, 0, 3, 3] = float("nan")
        print("bad file " + files(batch["ids"])[image], flush=True)


class BadLoss(BadNumber):
    """An infinite loss."""

    def spoil(self, engine, batch, files):
        forward = engine.forward

        def divided_by_zero(batch):
            out = forward(batch)
            return out | {"loss": out["loss"] / 0} if self.here() else out

        engine.forward = divided_by_zero


class BadGradient(BadNumber):
    """A NaN gradient that reaches the embeddings."""

    def spoil(self, engine, batch, files):
        def hook(module, inputs, outputs):
            if self.here():
                outputs[1].register_hook(lambda gradient: gradient * float("nan"))

        engine.task.embedder.register_forward_hook(hook)
