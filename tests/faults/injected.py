"""Faults and other things injected into a rank.

Each is called in its rank with the rank's number before it starts; what it returns hears the run's
events (`selftaught.training.events`).
"""

import hashlib
import json
import os
import signal
import threading
import time
from pathlib import Path

# The parts of a whole run, in order. `begin` is k-means, a part of fine-tuning.
PARTS = (
    *("prepare", "split", "pretrain", "begin", "finetune"),
    *("model", "score", "evaluate", "report"),
)
# What rank 0 does while the others wait, in order.
LONE_WORK = ("split", "begin", "scores", "metrics", "report")


class Fault:
    """Hears the events of one rank, or of all.

    Args:
        rank: who hears; None: all do.
    """

    def __init__(self, rank=None):
        self.rank = rank

    def __call__(self, rank):
        return self.hear if self.rank in (None, rank) else None

    def hear(self, event, **facts):
        raise NotImplementedError


def send(number):
    """The signal to this process itself, told to stdout."""
    print(f"sent at {time.time()}", flush=True)
    os.kill(os.getpid(), number)


class SignalDuring(Fault):
    """Sends a signal to rank `rank` while rank 0 works alone, for a minute unless it is ended.

    Args:
        number: of the signal.
        rank: who gets it.
        work: one of `LONE_WORK`.
        folder: where rank 0 tells the other that it began.
    """

    def __init__(self, number, rank, work, folder):
        self.number, self.rank, self.work, self.began = number, rank, work, folder / f"{work} began"

    def __call__(self, rank):
        self.began.unlink(missing_ok=True)
        if rank == self.rank:
            threading.Thread(target=self.send, daemon=True).start()
        return self.hear

    def hear(self, event, **facts):
        if (event, facts.get("work")) == ("alone", self.work):
            self.began.touch()
            end = time.monotonic() + 60
            while time.monotonic() < end:
                time.sleep(0.02)
            raise AssertionError("not ended")

    def send(self):
        while not self.began.exists():
            time.sleep(0.02)
        send(self.number)


class Timed(Fault):
    """Writes the seconds that each part takes to `path` (JSON)."""

    def __init__(self, path):
        super().__init__()
        self.path, self.seconds, self.since = path, dict.fromkeys(PARTS, 0.0), {}

    def hear(self, event, **facts):
        if event == "begin":
            self.since[facts["part"]] = time.monotonic()
        if event == "end":
            self.seconds[facts["part"]] += time.monotonic() - self.since[facts["part"]]
            self.path.write_text(json.dumps(self.seconds))


class Kill(Fault):
    """Kill -9 of the process and those it started."""

    def __call__(self, rank):
        os.setsid()
        return super().__call__(rank)

    def kill(self):
        os.killpg(os.getpid(), signal.SIGKILL)


class KillIn(Kill):
    """Kill in a part of a run.

    Args:
        part: one of `PARTS`.
        seconds: from its first beginning to the kill, which comes at its end at the latest.
    """

    def __init__(self, part, seconds=3600.0):
        super().__init__()
        self.part, self.seconds = part, seconds

    def hear(self, event, **facts):
        if facts.get("part") != self.part:
            return
        if event == "begin":
            threading.Thread(target=self.wait_and_kill, daemon=True).start()
        if event == "end":
            self.kill()

    def wait_and_kill(self):
        time.sleep(self.seconds)
        self.kill()


class KillOnceThere(Kill):
    """Kill as soon as a file exists."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    def __call__(self, rank):
        threading.Thread(target=self.wait_and_kill, daemon=True).start()
        return super().__call__(rank)

    def hear(self, event, **facts):
        if (event, facts.get("part")) == ("end", "prepare"):
            self.kill()

    def wait_and_kill(self):
        while not self.path.exists():
            time.sleep(0.001)
        self.kill()


class At(Fault):
    """Calls `act` in rank `rank` when the loop called `loop` has done `done` steps."""

    def __init__(self, rank, loop, done, act, *arguments):
        super().__init__(rank)
        self.loop, self.done, self.act, self.arguments = loop, done, act, arguments

    def hear(self, event, **facts):
        if event == "progress" and (facts["name"], facts["done"]) == (self.loop, self.done):
            self.act(*self.arguments)


class InValidation(Fault):
    """The signal `number` to rank `rank` in a validation of fine-tuning.

    Args:
        number: of the signal.
        rank: who gets it.
        turn: 0-based, which validation of this process.
        batch: 0-based, of those that it embeds.
    """

    def __init__(self, number, rank, turn=0, batch=1):
        super().__init__(rank)
        self.number, self.turn, self.batch, self.turns = number, turn, batch, -1

    def hear(self, event, **facts):
        if event == "batch" and facts["name"] == "validation":
            self.turns += facts["number"] == 0
            if (self.turns, facts["number"]) == (self.turn, self.batch):
                send(self.number)


class Recording(Fault):
    """Writes what each step is given, image by image, to a file for each rank in `folder`."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def __call__(self, rank):
        self.folder.mkdir(exist_ok=True)
        self.path = self.folder / f"{rank}"
        return self.hear

    def hear(self, event, **facts):
        if event != "step":
            return
        batch, names = facts["batch"], facts["files"](facts["batch"]["ids"])
        with self.path.open("a") as handle:
            for name, views in zip(names, batch["views"], strict=True):
                digest = hashlib.sha256(views.numpy().tobytes()).hexdigest()
                print(facts["step"], name, len(views), digest, file=handle)

    def lines(self):
        """What all ranks were given, sorted."""
        return sorted(
            line for path in self.folder.iterdir() for line in path.read_text().splitlines()
        )


class BadNumber(Fault):
    """Rank `rank` meets a number that is not finite.

    Args:
        rank: who meets it.
        step: 0-based.
        stage: whose step.
        part: 0-based micro-batch that it is in.
        parts: micro-batches of a step.
    """

    def __init__(self, rank, step, stage="pretext", part=0, parts=1):
        super().__init__(rank)
        self.step, self.stage, self.part, self.parts = step, stage, part, parts

    def hear(self, event, **facts):
        if event == "step" and (facts["stage"], facts["step"]) == (self.stage, self.step):
            self.passes = 0
            batch, files = facts["batch"], facts["files"]
            chunk = batch["ids"].chunk(self.parts)[self.part]
            print("images " + " ".join(files(chunk)), flush=True)
            self.spoil(facts["engine"], batch, files)

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

        def divided_by_zero(batch, player):
            out = forward(batch, player)
            return out | {"loss": out["loss"] / 0} if self.here() else out

        engine.forward = divided_by_zero


class BadGradient(BadNumber):
    """A NaN gradient that reaches the embeddings."""

    def spoil(self, engine, batch, files):
        def hook(module, inputs, outputs):
            if self.here():
                outputs.register_hook(lambda gradient: gradient * float("nan"))

        engine.task.embedder.head.register_forward_hook(hook)
