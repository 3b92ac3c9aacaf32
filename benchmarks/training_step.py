"""What the loop costs: its steps against a plain PyTorch loop over the same model and batches.

python -m benchmarks.training_step
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.record import write
from selftaught.models.encoder import EncoderConfig
from selftaught.models.heads import build_embedder
from selftaught.training.engine import TorchEngine
from selftaught.training.loop import Schedule, train
from selftaught.training.progress import Reporter
from selftaught.training.stop import Stopper
from selftaught.training.tasks import PretextTask

SIZE, BATCH, STEPS, ROUNDS = 96, 24, 8, 7


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
    start = time.perf_counter()
    for batch in batches:
        x = torch.cat([batch["views"][:, 0], batch["views"][:, 1]])
        loss = plain_loss(embedder(x)[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
    return time.perf_counter() - start


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


def our_round(engine, batches, folder, reporter):
    clock = {}
    train(engine, timed(Fixed(batches), clock), folder, reporter, Stopper())
    return clock["end"] - clock["start"]


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
    task = PretextTask(build_embedder(EncoderConfig(), 1), temperature=0.5, method="ntxent")
    engine = TorchEngine(task, weight_decay=1e-6, precision="fp32")
    ratios, times = [], {"plain": [], "selftaught": []}
    with tempfile.TemporaryDirectory() as place, Reporter(Path(place)) as reporter:
        plain_round(plain, optimizer, batches)
        our_round(engine, batches, Path(place) / "warm", reporter)
        for number in range(ROUNDS):
            times["plain"].append(plain_round(plain, optimizer, batches) / STEPS)
            ours = our_round(engine, batches, Path(place) / str(number), reporter) / STEPS
            times["selftaught"].append(ours)
            ratios.append(times["selftaught"][-1] / times["plain"][-1])
    rows = [
        {
            "kernel": "training_step",
            "provider": name,
            "mode": "full",
            "shape": f"{BATCH}x2x{SIZE}x{SIZE}",
            "dtype": "fp32",
            "milliseconds_median": round(1000 * statistics.median(values), 2),
            "ratio_to_plain_median": round(statistics.median(ratios), 4) if "self" in name else 1,
        }
        for name, values in times.items()
    ]
    for row in rows:
        print(row)
    print(write("training_step", rows))


if __name__ == "__main__":
    main()
