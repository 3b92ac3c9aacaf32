"""Throughput and communication share of the pretext step over ranks of this machine.

python -m benchmarks.scaling [--ranks 1 2 4]
python -m benchmarks.scaling --paper

The same global batch on each number of ranks (strong scaling, as a run does it). Communication is
what DDP's averaging of gradients costs: the step's time less the time of the same step without it.
--paper measures nothing: it prints the table of docs/scaling.md from that page's formula.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.plot import draw
from benchmarks.record import write
from selftaught import distributed, methods
from selftaught.models.network import Network
from selftaught.training.config import EngineConfig
from selftaught.training.stage import make_engine

SIZE, BATCH, STEPS, ROUNDS = 96, 24, 4, 5

# Of the paper table; docs/scaling.md says where each comes from.
GRADIENT = 4 * (11_176_512 + 164_224)  # bytes
WIDTH, NORMS = 128, 40
IMAGES_PER_S = 2_200
IN_NODE, ACROSS = 370e9, 50e9  # bytes/s
LATENCY = {8: 20e-6, 64: 50e-6, 512: 80e-6}  # seconds
ON_PAPER = ((24, 8), (1_024, 8), (1_024, 64), (1_024, 512), (8_192, 64), (8_192, 512))


def paper_row(batch, gpus):
    """One row of the table of docs/scaling.md."""
    rate = IN_NODE if gpus <= 8 else ACROSS
    compute = batch / gpus / IMAGES_PER_S
    gradient = 2 * (gpus - 1) / gpus * GRADIENT / rate
    norms = NORMS * LATENCY[gpus]
    views = 2 * batch * WIDTH * 4 / rate
    step = compute + gradient + norms + views
    times = " | ".join(f"{1000 * t:.1f}" for t in (compute, gradient, norms, views, step))
    images = float(f"{batch / step:.3g}")
    share = f"{100 * compute / step:.0f} %"
    return f"| {batch:,} | {gpus} | {batch // gpus} | {times} | {images:,.0f} | {share} |"


def seconds_per_step(engine, batch, average):
    """Mean over STEPS steps, without the averaging of gradients where `average` is false."""
    distributed.barrier()
    began = time.perf_counter()
    for _ in range(STEPS):
        with engine.accumulate(last=average):
            engine.backward(engine.forward(batch)["loss"], 1)
        engine.step(1e-4)
    distributed.barrier()
    return (time.perf_counter() - began) / STEPS


def gradient_average(elements):
    """Seconds to sum a float32 vector as long as the gradient over the ranks."""
    gradient = torch.zeros(elements)
    distributed.barrier()
    began = time.perf_counter()
    for _ in range(STEPS):
        distributed.sum_over_ranks(gradient)
    return (time.perf_counter() - began) / STEPS


def measure():
    """Figures of one number of ranks, the same on each."""
    torch.set_num_threads(1)
    distributed.start()
    ranks = distributed.world_size()
    torch.manual_seed(distributed.rank())
    share = BATCH // ranks
    batch = {
        "views": torch.randn(share, 2, 1, SIZE, SIZE),
        "semi_label": torch.zeros(share, dtype=torch.int64),
        "ids": torch.arange(share),
    }
    task = methods.load("ntxent")(methods.options("ntxent"), Network(seed=1))
    config = EngineConfig(precision="fp32")
    engine = make_engine(task, config, optimizer="sgd", weight_decay=0.0)
    seconds_per_step(engine, batch, True)
    rounds = [
        (seconds_per_step(engine, batch, True), seconds_per_step(engine, batch, False))
        for _ in range(ROUNDS)
    ]
    elements = sum(p.numel() for p in task.parameters())
    whole, silent = (statistics.median(column) for column in zip(*rounds, strict=True))
    return {
        "ranks": ranks,
        "batch": BATCH,
        "size": SIZE,
        "images_per_s": BATCH / whole,
        "step_s": whole,
        "communication_share": max(0.0, 1 - silent / whole) if ranks > 1 else 0.0,
        "gradient_mb": elements * 4 / 1e6,
        "allreduce_s": statistics.median(gradient_average(elements) for _ in range(ROUNDS)),
    }


def _rank(rank, ranks, folder):
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "LOCAL_WORLD_SIZE": str(ranks)}
    if ranks > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": os.environ.get("MASTER_PORT", "29517"),
        }
    figures = measure()
    if rank == 0:
        torch.save(figures, Path(folder) / "figures.pt")
    distributed.finish()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--paper", action="store_true", help="print the table of docs/scaling.md")
    options = parser.parse_args()
    if options.paper:
        print(*(paper_row(*case) for case in ON_PAPER), sep="\n")
        return
    torch.set_num_threads(1)
    rows = []
    for ranks in options.ranks:
        if ranks < 1 or BATCH % ranks:
            parser.error(f"--ranks {ranks}; allowed: divisors of {BATCH}")
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(_rank, (ranks, folder), nprocs=ranks)
            rows.append(torch.load(Path(folder) / "figures.pt"))
        rows[-1]["efficiency"] = rows[-1]["images_per_s"] / rows[0]["images_per_s"] / ranks
        print({k: round(v, 4) for k, v in rows[-1].items()}, flush=True)
    print(write("scaling", rows), draw("scaling"))


if __name__ == "__main__":
    main()
