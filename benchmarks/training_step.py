"""What the loop costs: its steps against a plain PyTorch loop over the same model and batches.

python -m benchmarks.training_step

Also what torch.compile of the backbone gains. Providers take turns, a round of steps each; ratios
are medians over rounds, losses those of the first round, in which all begin from the same weights.
On a GPU: 512 px, bf16, channels-last, and the gate of 2,500 views/s; elsewhere a size for 2 cores.
"""

import itertools
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F

from benchmarks.measure import median_ratio
from benchmarks.plot import draw
from benchmarks.record import write
from selftaught import methods
from selftaught.models.network import Network
from selftaught.training.compiling import compile_backbone
from selftaught.training.ddp import TorchEngine
from selftaught.training.loop import train
from selftaught.training.progress import Reporter
from selftaught.training.schedule import Schedule
from selftaught.training.stop import Stopper

ROUNDS = 5
VIEWS_PER_S = 2_500


@dataclass(frozen=True)
class Shape:
    """What is timed, and where."""

    size: int
    batch: int
    steps: int
    precision: str
    device: torch.device

    def place(self, module):
        """The module where and as `selftaught run` has it."""
        if self.device.type == "cpu":
            return module.to(self.device)
        return module.to(device=self.device, memory_format=torch.channels_last)

    def batches(self):
        generator = torch.Generator().manual_seed(1)
        views = [
            torch.rand(self.batch, 2, 1, self.size, self.size, generator=generator)
            for _ in range(self.steps)
        ]
        labels, ids = torch.zeros(self.batch, dtype=torch.int64), torch.arange(self.batch)
        return [
            {"views": one.to(self.device), "semi_label": labels.to(self.device), "ids": ids}
            for one in views
        ]


CPU = Shape(96, 24, 4, "fp32", torch.device("cpu"))
GPU = Shape(512, 256, 8, "bf16", torch.device("cuda"))


class Fixed:
    """A stage over batches made beforehand; `began` is when its first one was asked for."""

    pending = False

    def __init__(self, batches):
        self.schedule = Schedule(
            stage="pretext", epochs=1, steps_per_epoch=len(batches), lr=1e-4, milestones=()
        )
        self._batches = batches

    def batches(self, first_step):
        self.began = time.perf_counter()
        yield from self._batches[first_step:]

    def observe_epoch(self, epoch, step):
        return {}

    def share(self):
        raise AssertionError("nothing was skipped")

    def files(self, ids):
        return []


def plain_loss(z):
    z = F.normalize(z, dim=1)
    rows = z.shape[0]
    own = torch.eye(rows, dtype=torch.bool, device=z.device)
    scores = (z @ z.T / 0.5).masked_fill(own, -torch.inf)
    return F.cross_entropy(scores, (torch.arange(rows, device=z.device) + rows // 2) % rows)


def plain_round(embedder, optimizer, batches, shape):
    """Seconds and losses of a pass over the batches."""
    start, losses = time.perf_counter(), []
    for batch in batches:
        x = torch.cat([batch["views"][:, 0], batch["views"][:, 1]])
        bf16 = shape.precision == "bf16"
        with torch.autocast(shape.device.type, torch.bfloat16, enabled=bf16):
            loss = plain_loss(embedder(x)[1].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return time.perf_counter() - start, losses


def our_round(engine, batches, folder):
    """Seconds and losses of a pass over the batches."""
    stage, clock = Fixed(batches), {}
    folder.mkdir()

    def close_epoch():
        clock["end"] = time.perf_counter()
        return {}

    with Reporter(folder) as reporter, mock.patch.object(engine.task, "close_epoch", close_epoch):
        train(engine, stage, folder / "pretext", reporter, Stopper())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return clock["end"] - stage.began, [x["loss"] for x in lines if x["kind"] == "step"]


def new_engine(shape):
    task = methods.load("ntxent")(methods.options("ntxent"), Network(seed=1))
    return TorchEngine(shape.place(task), weight_decay=1e-6, precision=shape.precision)


def measure(shape):
    """Rows of the CSV, a provider each."""
    batches = shape.batches()
    plain = shape.place(Network(seed=1).embedder())
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-4, weight_decay=1e-6)
    ours, compiled = new_engine(shape), new_engine(shape)
    work = {
        "plain": lambda place: plain_round(plain, optimizer, batches, shape),
        "selftaught": lambda place: our_round(ours, batches, place),
        "selftaught, compiled": lambda place: our_round(compiled, batches, place),
    }
    times, losses = {name: [] for name in work}, {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        with Reporter(place) as reporter:
            compile_backbone(compiled, batches[0], reporter, "pretext", 0)
        for number, (name, one) in itertools.product(range(1 + ROUNDS), work.items()):
            seconds, found = one(place / f"{number} {name}")
            losses.setdefault(name, found)
            if number:  # the first round is warm-up
                times[name].append(seconds / shape.steps)
    return [
        {
            "kernel": "training_step",
            "provider": name,
            "mode": "full",
            "shape": f"{shape.batch}x2x{shape.size}x{shape.size}",
            "dtype": shape.precision,
            "views_per_s": round(2 * shape.batch / statistics.median(values), 1),
            "milliseconds_median": round(1000 * statistics.median(values), 2),
            "ratio_to_plain_median": median_ratio(values, times["plain"]),
            "first_loss_difference": difference(losses[name][:1], losses["plain"]),
            "largest_loss_difference": difference(losses[name], losses["plain"]),
        }
        for name, values in times.items()
    ]


def gate(rows):
    """What performance asks of a GPU's step, as words."""
    best = max(row["views_per_s"] for row in rows if row["provider"] != "plain")
    said = "met" if best >= VIEWS_PER_S else "MISSED"
    return f"gate of {VIEWS_PER_S:,} views/s: {said}, {best:,.0f}"


def main():
    """Measure, print, and write the CSV with its picture."""
    gpu = torch.cuda.is_available()
    rows = measure(GPU if gpu else CPU)
    for row in rows:
        print(row)
    if gpu:
        print(gate(rows))
    print(write("training_step", rows), draw("training_step"))


def difference(losses, reference):
    """Largest relative difference."""
    worst = max(abs(a - b) / abs(b) for a, b in zip(losses, reference, strict=False))
    return f"{worst:.1e}"


if __name__ == "__main__":
    main()
