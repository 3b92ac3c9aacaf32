"""What the loop costs: its steps against a plain PyTorch loop over the same model and batches.

python -m benchmarks.training_step

Also what torch.compile of the encoder gains. Providers take turns, a round of steps each; ratios
are medians over rounds, losses those of the first round, in which all begin from the same weights.
"""

import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.measure import median_ratio
from benchmarks.plot import draw
from benchmarks.record import write
from selftaught.models.encoder import EncoderConfig
from selftaught.models.heads import build_embedder
from selftaught.training.compiling import compile_encoder
from selftaught.training.engine import TorchEngine
from selftaught.training.loop import Schedule, train
from selftaught.training.progress import Reporter
from selftaught.training.stop import Stopper
from selftaught.training.tasks import PretextTask

SIZE, BATCH, STEPS, ROUNDS = 96, 24, 4, 5


class Fixed:
    """A stage over batches made beforehand."""

    def __init__(self, batches):
        self.schedule = Schedule(
            stage="pretext", epochs=1, steps_per_epoch=len(batches), lr=1e-4, milestones=()
        )
        self._batches = batches

    def batches(self, first_step):
        return iter(self._batches[first_step:])

    def close_epoch(self):
        return {}

    def observe_epoch(self, epoch, step):
        return {}

    def files(self, ids):
        return []


def plain_loss(z):
    z = F.normalize(z, dim=1)
    rows = z.shape[0]
    scores = (z @ z.T / 0.5).masked_fill(torch.eye(rows, dtype=torch.bool), -torch.inf)
    return F.cross_entropy(scores, (torch.arange(rows) + rows // 2) % rows)


def plain_round(embedder, optimizer, batches):
    """Seconds and losses of a pass over the batches."""
    start, losses = time.perf_counter(), []
    for batch in batches:
        x = torch.cat([batch["views"][:, 0], batch["views"][:, 1]])
        loss = plain_loss(embedder(x)[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return time.perf_counter() - start, losses


def timed(stage, clock):
    """The stage with its clock started at the first batch and stopped after the last step."""

    def batches(first_step):
        clock["start"] = time.perf_counter()
        yield from stage._batches[first_step:]

    def close_epoch():
        clock["end"] = time.perf_counter()
        return {}

    stage.batches, stage.close_epoch = batches, close_epoch
    return stage


def our_round(engine, batches, folder):
    """Seconds and losses of a pass over the batches."""
    clock = {}
    folder.mkdir()
    with Reporter(folder) as reporter:
        train(engine, timed(Fixed(batches), clock), folder / "pretext", reporter, Stopper())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return clock["end"] - clock["start"], [x["loss"] for x in lines if x["kind"] == "step"]


def new_engine():
    task = PretextTask(build_embedder(EncoderConfig(), 1), temperature=0.5, method="ntxent")
    return TorchEngine(task, weight_decay=1e-6, precision="fp32")


def main():
    generator = torch.Generator().manual_seed(1)
    batches = [
        {
            "views": torch.rand(BATCH, 2, 1, SIZE, SIZE, generator=generator),
            "semi_label": torch.zeros(BATCH, dtype=torch.int64),
            "ids": torch.arange(BATCH),
        }
        for _ in range(STEPS)
    ]
    plain = build_embedder(EncoderConfig(), 1)
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-4, weight_decay=1e-6)
    ours, compiled = new_engine(), new_engine()
    work = {
        "plain": lambda place: plain_round(plain, optimizer, batches),
        "selftaught": lambda place: our_round(ours, batches, place),
        "selftaught, compiled": lambda place: our_round(compiled, batches, place),
    }
    times, losses = {name: [] for name in work}, {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        with Reporter(place) as reporter:
            compile_encoder(compiled, batches[0], reporter, "pretext", 0)
        for number, (name, one) in itertools.product(range(1 + ROUNDS), work.items()):
            seconds, found = one(place / f"{number} {name}")
            losses.setdefault(name, found)
            if number:  # the first round is warm-up
                times[name].append(seconds / STEPS)
    rows = [
        {
            "kernel": "training_step",
            "provider": name,
            "mode": "full",
            "shape": f"{BATCH}x2x{SIZE}x{SIZE}",
            "dtype": "fp32",
            "milliseconds_median": round(1000 * statistics.median(values), 2),
            "ratio_to_plain_median": median_ratio(values, times["plain"]),
            "first_loss_difference": difference(losses[name][:1], losses["plain"]),
            "largest_loss_difference": difference(losses[name], losses["plain"]),
        }
        for name, values in times.items()
    ]
    for row in rows:
        print(row)
    print(write("training_step", rows), draw("training_step"))


def difference(losses, reference):
    """Largest relative difference."""
    worst = max(abs(a - b) / abs(b) for a, b in zip(losses, reference, strict=False))
    return f"{worst:.1e}"


if __name__ == "__main__":
    main()
