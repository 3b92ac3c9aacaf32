"""Runs a function on gloo ranks, and uneven divisions of rows among them."""

import socket

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

RANKS = 4
# Where each rank's rows begin, as shares of all; the empty shards are on purpose.
DIVISIONS = {
    1: (0.0, 1.0),
    2: (0.0, 0.31, 1.0),
    3: (0.0, 0.5, 0.5, 1.0),
    4: (0.0, 0.0, 0.07, 0.9, 1.0),
}


def part(rows, ranks, rank):
    """This rank's slice of `rows` rows."""
    first, last = (int(share * rows) for share in DIVISIONS[ranks][rank : rank + 2])
    return slice(first, last)


def _work(rank, port, check):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://localhost:{port}", world_size=RANKS, rank=rank)
    for ranks in range(1, RANKS + 1):
        group = dist.new_group(list(range(ranks)))
        if rank < ranks:
            check(ranks, rank, "world" if ranks == RANKS else group)
    dist.barrier()
    dist.destroy_process_group()


def on_ranks(check):
    """Calls `check(ranks, rank, group)` in groups of 1 to 4 processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    spawn(_work, args=(port, check), nprocs=RANKS)
