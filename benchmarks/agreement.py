"""How closely 20 steps on two ranks follow those of one process: DDP and DeepSpeed, fp32 and fp64.

python -m benchmarks.agreement

The floor is one process with two threads: what differs there is rounding and nothing else. Each row
tells the largest relative difference of a loss to one process with one thread, and after how many
steps a loss differs by more than 1e-4 first (20 = none does).
"""

import importlib.util
import itertools
import os
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.plot import draw
from benchmarks.record import write
from selftaught import distributed, methods
from selftaught.models.network import Network
from selftaught.training.config import EngineConfig
from selftaught.training.stage import make_engine

IMAGES, SIZE, BATCH, STEPS, CENTERS = 48, 32, 8, 20, 4
LIMIT = 1e-4
STAGES = {"pretext": {"name": "ntxent"}, "finetune": {"name": "spheres", "centers": CENTERS}}
RATES = {"adam": 1e-4, "sgd": 0.05 * BATCH / 256}
OPTIMIZERS = {"fp32": ("adam", "sgd"), "fp64": ("adam",)}
# Name, kind, ZeRO stage, precisions. DeepSpeed divides weights in float32 only.
RANKED = (
    ("2 ranks, DDP", "ddp", 0, ("fp32", "fp64")),
    ("2 ranks, DeepSpeed stage 0", "deepspeed", 0, ("fp32", "fp64")),
    ("2 ranks, DeepSpeed stage 1", "deepspeed", 1, ("fp32",)),
    ("2 ranks, DeepSpeed stage 2", "deepspeed", 2, ("fp32",)),
)


def batches(dtype):
    """This rank's share of every step's batch: noisy views of blurred noise."""
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(IMAGES, 1, SIZE + 8, SIZE + 8, generator=generator)
    images = 9 * F.avg_pool2d(noise, 9, 1)
    ranks, rank = distributed.world_size(), distributed.rank()
    for _ in range(STEPS):
        ids = torch.randperm(IMAGES, generator=generator)[:BATCH]
        grain = torch.randn(BATCH, 2, 1, SIZE, SIZE, generator=generator)
        views = images[ids][:, None] + 0.3 * grain
        whole = {"views": views.to(dtype), "semi_label": (ids % 6 == 0).long(), "ids": ids}
        yield {name: value.chunk(ranks)[rank] for name, value in whole.items()}


def losses(stage, kind, zero, precision, optimizer):
    """Loss of each step, over all ranks."""
    dtype = torch.float64 if precision == "fp64" else torch.float32
    options = methods.options(**STAGES[stage])
    task = methods.load(options.method)(options, Network(seed=1))
    if stage == "finetune":
        task.centers.copy_(torch.randn(CENTERS, 128, generator=torch.Generator().manual_seed(6)))
    config = EngineConfig(kind=kind, zero_stage=zero, precision=precision)
    engine = make_engine(task.to(dtype), config, optimizer=optimizer, weight_decay=1e-6)
    found = []
    for batch in batches(dtype):
        loss = engine.forward(batch)["loss"]
        engine.backward(loss, 1)
        engine.step(RATES[optimizer])
        found.append(float(distributed.sum_over_ranks(loss.detach())) / distributed.world_size())
    return found


def jobs():
    """(precision, optimizer, stage) that are compared."""
    for precision, stage in itertools.product(OPTIMIZERS, STAGES):
        yield from ((precision, optimizer, stage) for optimizer in OPTIMIZERS[precision])


def ranked_cases():
    """What two ranks do: (name, kind, ZeRO stage, precision, optimizer, stage)."""
    for (name, kind, zero, precisions), (precision, optimizer, stage) in itertools.product(
        RANKED, jobs()
    ):
        if precision in precisions and (kind == "ddp" or importlib.util.find_spec("deepspeed")):
            yield name, kind, zero, precision, optimizer, stage


def _rank(rank, folder):
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
    os.environ.setdefault("MASTER_PORT", "29518")
    torch.set_num_threads(1)
    distributed.start()
    found = {}
    for name, kind, zero, precision, optimizer, stage in ranked_cases():
        found[name, precision, optimizer, stage] = losses(stage, kind, zero, precision, optimizer)
    if rank == 0:
        torch.save(found, Path(folder) / "losses.pt")
    distributed.finish()


def main():
    found = {}
    for precision, optimizer, stage in jobs():
        for threads, name in ((1, "reference"), (2, "one process, 2 threads")):
            torch.set_num_threads(threads)
            found[name, precision, optimizer, stage] = losses(stage, "ddp", 0, precision, optimizer)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (folder,), nprocs=2)
        found |= torch.load(Path(folder) / "losses.pt")
    rows = []
    for (name, precision, optimizer, stage), ours in found.items():
        if name == "reference":
            continue
        theirs = found["reference", precision, optimizer, stage]
        gaps = [abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True)]
        rows.append(
            {
                "run": name,
                "precision": precision,
                "optimizer": optimizer,
                "lr": RATES[optimizer],
                "stage": stage,
                "largest_difference": f"{max(gaps):.1e}",
                "steps_within_1e-4": next((i for i, g in enumerate(gaps) if g > LIMIT), STEPS),
            }
        )
    rows.sort(key=lambda row: (row["precision"], row["optimizer"], row["run"]))
    for row in rows:
        print(*row.values(), sep=", ")
    torch.set_num_threads(1)
    print(write("agreement", rows), draw("agreement"))


if __name__ == "__main__":
    main()
