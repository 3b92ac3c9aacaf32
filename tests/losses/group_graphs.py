"""What a compiler makes of the losses of a group; every rank calls these with its rows."""

import copy
from functools import partial

import torch
import torch.distributed as dist
from torch import nn

from selftaught import distributed
from selftaught.kernels import ops, ranks
from selftaught.losses import NTXentLoss, compat, info_nce_loss, ntxent_loss, supcon_loss
from tests.losses.formulas import views

IMAGES, WIDTH = 12, 9


def compare_compiled(group, rows, backend, only=""):
    """One graph, exchanges included, gives what eager mode does."""
    labels = torch.tensor([0, 1, -1, 0, 2, -1, 0, 3, 3, -1, 2, 2])[rows]
    z = [nn.functional.normalize(v)[rows] for v in views(IMAGES, WIDTH, 0.5)]
    rank, ranks = dist.get_rank(), dist.get_world_size()
    bank = compat.NTXentLoss(0.2, memory_bank_size=(20, WIDTH), gather_distributed=True).double()
    for name, call in {
        "ntxent": partial(ntxent_loss, group=group),
        "ring": partial(ntxent_loss, group="world", exchange="ring"),
        "supcon": lambda a, b: supcon_loss(a, b, labels, group="world"),
        "clip": lambda a, b: info_nce_loss(a, b, symmetric=True, group=dist.group.WORLD),
        "module": NTXentLoss(0.2, group=group),
        "lightly": compat.NTXentLoss(0.2, gather_distributed=True),
        "lightly, bank": bank,
        "open_clip": lambda a, b: compat.ClipLoss(False, True, False, rank, ranks)(a, b, 5.0),
    }.items():
        if only not in ("", name):
            continue
        print(f"compiling {name}")
        torch._dynamo.reset()
        twin = copy.deepcopy(call) if call is bank else call
        compiled = torch.compile(twin, fullgraph=True, backend=backend)
        seen = []
        for function in (call, compiled):
            leaves = [v.clone().requires_grad_() for v in z]
            loss = function(*leaves)
            loss.backward()
            seen.append([loss.detach(), *(leaf.grad for leaf in leaves)])
        torch.testing.assert_close(seen[1], seen[0])
        if call is bank:
            keys = distributed.gather(z[1])
            torch.testing.assert_close(bank.bank[: len(keys)], keys)
            torch.testing.assert_close(twin.bank, bank.bank)


def check_ops(group, rows):
    """What a compiler is told of the ops over ranks is what they give."""
    z = torch.cat([v[rows] for v in views(IMAGES, WIDTH, 0.5)])
    last = (True, "auto", False, ranks.group_name(group), "")
    classes, key, tau = torch.arange(len(z)) % 3, z.flip(1), torch.tensor(0.3).double()
    travelling = (*last[:2], True, *last[3:])
    for op, *arguments in (
        (ops.ntxent_over_ranks, z, tau, 0.0, *last),
        (ops.ntxent_over_ranks, z.float(), None, 0.5, *travelling),
        (ops.supcon_over_ranks, z, classes, None, 0.5, True, *last),
        (ops.info_nce_over_ranks, z, key, key[:2], tau, 0.0, False, True, *last),
        (ops.info_nce_over_ranks, z, key, None, None, 0.5, True, True, *travelling),
    ):
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))
