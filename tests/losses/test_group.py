"""Losses over several ranks equal one process on the global batch, gradients included.

Every rank computes both and compares. Four processes are a group of four, and two and three of them
are smaller ones. Two go through DDP, which averages gradients; the others average by hand.
"""

from contextlib import contextmanager
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

from selftaught import distributed
from selftaught.losses import (
    NTXentLoss,
    cached_backward,
    compat,
    info_nce_loss,
    ntxent_loss,
    supcon_loss,
)
from tests.losses.formulas import views
from tests.losses.group_graphs import IMAGES, WIDTH, check_ops, compare_compiled
from tests.ranks import free_port

RANKS = 4


def losses(labels, queue, group):
    """Name, function of two views and a temperature; `labels` are this process's rows."""
    return {
        "ntxent": partial(ntxent_loss, group=group),
        "supcon": lambda a, b, t: supcon_loss(a, b, labels, t, group=group),
        "info_nce": lambda a, b, t: info_nce_loss(
            a, b, negatives=queue, temperature=t, group=group
        ),
        "clip": lambda a, b, t: info_nce_loss(a, b, temperature=t, symmetric=True, group=group),
        "normalize off": lambda a, b, t: ntxent_loss(a, b, 10 * t, normalize=False, group=group),
        "ring": partial(ntxent_loss, group=group, exchange="ring"),
        "ring, info_nce": lambda a, b, t: info_nce_loss(
            a, b, negatives=queue, temperature=t, group=group, exchange="ring"
        ),
        "ring, clip": lambda a, b, t: info_nce_loss(
            a, b, temperature=t, symmetric=True, group=group, exchange="ring"
        ),
        "queue alone": lambda a, b, t: info_nce_loss(
            a, b, negatives=queue, temperature=t, in_batch=False, group=group
        ),
    }


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.linear = nn.Linear(WIDTH, 5).double()
        self.temperature = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, x1, x2):
        return self.linear(x1), self.linear(x2), self.temperature


def replicate(module, group):
    ddp = dist.get_world_size(group) == 2
    return DistributedDataParallel(module, process_group=group) if ddp else module


def gradients(module, group=None):
    """Gradients averaged over ranks; those of DDP are, and averaging keeps them."""
    found = {name.removeprefix("module."): p.grad.clone() for name, p in module.named_parameters()}
    if group is not None:
        for gradient in found.values():
            dist.all_reduce(gradient, group=group)
            gradient /= dist.get_world_size(group)
    module.zero_grad()
    return found


def compare(group, rows):
    x1, x2 = views(IMAGES, WIDTH, 0.5)
    labels = torch.tensor([0, 1, -1, 0, 2, -1, 0, 3, 3, -1, 2, 2])
    queue = views(4, 5, 0.5, seed=9)[0]
    whole, sharded = Model(), replicate(Model(), group)
    everyone = losses(labels, queue, None)
    mine = losses(labels[rows], queue, group)
    for name, function in everyone.items():
        expected = function(*whole(x1, x2))
        expected.backward()
        value = mine[name](*sharded(x1[rows], x2[rows]))
        value.backward()
        mean = value.detach().clone()
        dist.all_reduce(mean, group=group)
        print(f"comparing {name}")  # named in the captured output where one fails
        torch.testing.assert_close(mean / dist.get_world_size(group), expected.detach())
        torch.testing.assert_close(gradients(sharded, group), gradients(whole))


def compare_rows(group, rows):
    z1, z2 = views(IMAGES, WIDTH, 0.5)
    expected = ntxent_loss(z1, z2, reduction="none").view(2, -1)[:, rows].flatten()
    for exchange in ("gather", "ring"):
        found = ntxent_loss(z1[rows], z2[rows], reduction="none", group=group, exchange=exchange)
        torch.testing.assert_close(found, expected)
    total = ntxent_loss(z1[rows], z2[rows], reduction="sum", group=group)
    torch.testing.assert_close(total, expected.sum())


def compare_weighted_rows(group, rows):
    """Rows of different weights; further negatives and the temperature get gradients too."""
    labels = torch.tensor([0, 1, -1, 0, 2, -1, 0, 3, 3, -1, 2, 2])
    weight = torch.linspace(0.1, 2, 2 * IMAGES, dtype=torch.float64)
    start = [
        *views(IMAGES, WIDTH, 0.5),
        views(4, WIDTH, 0.5, seed=9)[0],
        torch.tensor(0.3).double(),
    ]
    for name, call in {
        "ntxent": lambda a, b, n, t, y, **more: ntxent_loss(a, b, t, **more),
        "ring": lambda a, b, n, t, y, **more: ntxent_loss(a, b, t, exchange="ring", **more),
        "supcon": lambda a, b, n, t, y, **more: supcon_loss(a, b, y, t, **more),
        "info_nce": lambda a, b, n, t, y, **more: info_nce_loss(
            a, b, negatives=n, temperature=t, **more
        ),
        "clip, ring": lambda a, b, n, t, y, **more: info_nce_loss(
            a, b, temperature=t, symmetric=True, exchange="ring", **more
        ),
        "clip": lambda a, b, n, t, y, **more: info_nce_loss(
            a, b, temperature=t, symmetric=True, **more
        ),
    }.items():
        print(f"comparing weighted {name}")
        whole = [v.clone().requires_grad_() for v in start]
        loss = call(*whole, labels, reduction="none")
        weights = weight[: len(loss)]
        (loss @ weights).backward()
        mine = [v.clone().requires_grad_() for v in (start[0][rows], start[1][rows], *start[2:])]
        loss = call(*mine, labels[rows], reduction="none", group=group)
        (loss @ weights.view(-1, IMAGES)[:, rows].flatten()).backward()
        for part, leaf in zip(mine[:2], whole, strict=False):
            torch.testing.assert_close(part.grad, leaf.grad[rows])
        for part, leaf in zip(mine[2:], whole[2:], strict=True):
            assert (part.grad is None) == (leaf.grad is None)
            if leaf.grad is not None:
                dist.all_reduce(part.grad, group=group)
                torch.testing.assert_close(part.grad, leaf.grad)


def compare_half_precision(rows):
    """bf16 under autocast: computed in float32, gradients in the input's dtype."""
    z1, z2 = (z.bfloat16() for z in views(IMAGES, WIDTH, 0.5))
    whole = [z.clone().requires_grad_() for z in (z1, z2)]
    ntxent_loss(*whole).backward()
    for exchange in ("gather", "ring"):
        mine = [z[rows].clone().requires_grad_() for z in (z1, z2)]
        with torch.autocast("cpu"):
            loss = ntxent_loss(*mine, reduction="sum", group="world", exchange=exchange)
        assert loss.dtype == torch.float32
        (loss / (2 * IMAGES)).backward()
        for part, leaf in zip(mine, whole, strict=True):
            torch.testing.assert_close(part.grad, leaf.grad[rows])


def compare_autocast(rows):
    """float32 stays float32 under autocast, in the plain products of backend reference too."""
    z1, z2 = (z.float() for z in views(IMAGES, WIDTH, 0.5))
    expected = ntxent_loss(z1, z2, reduction="none").view(2, -1)[:, rows].flatten()
    for backend in ("auto", "reference"):
        with torch.autocast("cpu"):
            found = ntxent_loss(
                z1[rows], z2[rows], reduction="none", group="world", backend=backend
            )
        torch.testing.assert_close(found, expected)


@contextmanager
def sent():
    """How many numbers of how many bytes this rank sends, exchange by exchange."""
    sizes = []
    gather_name = distributed._ALL_GATHER
    gather, reduce = getattr(dist, gather_name), dist.all_reduce

    def counted_gather(out, tensor, **kwargs):
        sizes.append((tensor.numel(), tensor.dtype.itemsize))
        return gather(out, tensor, **kwargs)

    def counted_reduce(tensor, **kwargs):
        sizes.append((tensor.numel(), tensor.dtype.itemsize))
        return reduce(tensor, **kwargs)

    setattr(dist, gather_name, counted_gather)
    dist.all_reduce = counted_reduce
    try:
        yield sizes
    finally:
        setattr(dist, gather_name, gather)
        dist.all_reduce = reduce


def no_gradient_travels(rows):
    """Backward sends two numbers for each row, never the (rows, D) gradient."""
    z1, z2 = (z[rows].requires_grad_() for z in views(IMAGES, 512, 0.5))
    loss = ntxent_loss(z1, z2, group="world")
    with sent() as sizes:
        loss.backward()
    assert sizes == [(2 * 2 * len(z1), 8)]


def what_a_forward_sends(rows):
    """Five numbers that say what a rank passes, its embeddings, and of SupCon its log-sums."""
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (z[rows][:2].to(dtype) for z in views(IMAGES, WIDTH, 0.5))
        with sent() as sizes:
            ntxent_loss(a, b, group="world")
        assert sizes == [(5, 8), (2 * 2 * WIDTH, dtype.itemsize)]
    with sent() as sizes:
        supcon_loss(a, b, torch.tensor([0, 1]), group="world")
    assert sizes[2:] == [(4, 8), (4, 4)]  # classes, log-sums


def numbers_that_are_not_finite(rank):
    """A NaN on one rank is a NaN loss on all, and no rank waits."""
    for backend in ("auto", "reference"):
        settings = {"group": "world", "check_values": False, "backend": backend}
        for name, call in {
            "ntxent": lambda a, b, **more: ntxent_loss(a, b, **more),
            "ring": lambda a, b, **more: ntxent_loss(a, b, exchange="ring", **more),
            "supcon": lambda a, b, **more: supcon_loss(a, b, torch.tensor([0, 1]), **more),
            "clip": lambda a, b, **more: info_nce_loss(a, b, symmetric=True, **more),
        }.items():
            a, b = torch.randn(2, 2, WIDTH)
            if rank == 1:
                b[1, 3] = float("nan")
            loss = call(a.requires_grad_(), b, **settings)
            assert loss.isnan(), (backend, name)
            loss.backward()
            assert not a.grad.isfinite().all(), (backend, name)


def compare_clip(rank, ranks, rows):
    """Value and gradient of both settings of `local_loss`."""
    z = [nn.functional.normalize(v) for v in views(IMAGES, WIDTH, 0.5)]
    leaves = [v.clone().requires_grad_() for v in z]
    expected = compat.ClipLoss()(*leaves, 5.0)
    expected.backward()
    for local in (True, False):
        parts = [v[rows].clone().requires_grad_() for v in z]
        loss = compat.ClipLoss(local, True, rank=rank, world_size=ranks)(*parts, 5.0)
        loss.backward()
        if not local:
            torch.testing.assert_close(loss, expected)
        for part, leaf in zip(parts, leaves, strict=True):
            torch.testing.assert_close(part.grad / ranks, leaf.grad[rows])


def compare_cached(group, rows):
    """Chunks within a rank, negatives from all ranks, one averaging by DDP."""
    x1, x2 = views(IMAGES, WIDTH, 0.5)
    torch.manual_seed(5)
    whole = nn.Linear(WIDTH, 5).double()
    torch.manual_seed(5)
    sharded = replicate(nn.Linear(WIDTH, 5).double(), group)
    ntxent_loss(whole(x1), whole(x2), 0.2).backward()
    cached_backward(sharded, [x1[rows], x2[rows]], NTXentLoss(0.2, group=group), chunk_size=1)
    torch.testing.assert_close(gradients(sharded, group), gradients(whole))


def refusals(rank):
    """Every rank raises what is wrong on one, so none is left waiting."""
    wrong, z = rank == 1, torch.randn(2, WIDTH)
    labels, nan = torch.tensor([0, 1]), torch.full((2, WIDTH), float("nan"))
    for message, call in {
        r"z1: must be finite, but row 0": lambda: ntxent_loss(
            nan if wrong else z, z, group="world"
        ),
        r"z1: must be a tensor": lambda: ntxent_loss(None if wrong else z, z, group="world"),
        r"z1: must hold floating": lambda: ntxent_loss(
            z.long() if wrong else z, z, group="world", exchange="ring"
        ),
        r"z2: width D is 8": lambda: ntxent_loss(z, z[:, :8] if wrong else z, group="world"),
        r"reduction: got 'median'": lambda: ntxent_loss(
            z, z, reduction="median" if wrong else "mean", group="world"
        ),
        r"temperature: must be a finite number above 0": lambda: ntxent_loss(
            z, z, torch.tensor(-1.0 if wrong else 0.5), group="world"
        ),
        r"labels: got -2": lambda: supcon_loss(z, z, labels - 2 * wrong, group="world"),
        r"query: must have at least one row": lambda: info_nce_loss(
            z[: 2 * (not wrong)], z[: 2 * (not wrong)], group="world"
        ),
        r"negatives: must be finite": lambda: info_nce_loss(
            z, z, negatives=nan if wrong else z, group="world"
        ),
        r"backend: 'triton' cannot run": lambda: ntxent_loss(
            z, z, group="world", backend="triton" if wrong else None
        ),
    }.items():
        with pytest.raises(ValueError, match=message) as refused:
            call()
        assert str(refused.value).startswith("rank 1: ") == (not wrong)


def differences(rank):
    """Arguments that are fine on every rank, but not together."""
    other, z = rank == 1, torch.randn(3, WIDTH)
    labels = torch.tensor([0, 1, 0])
    for message, call in {
        "rank 0: 2 x 9 .* rank 1: 3 x 9 ": lambda: ntxent_loss(
            *[z[: 2 + other]] * 2, group="world"
        ),
        "rank 0: 2 x 9 .*rank 1: 3 x 9 ": lambda: supcon_loss(
            *[z[: 2 + other]] * 2, labels[: 2 + other], group="world"
        ),
        "rank 0: 3 x 8 .*rank 1: 3 x 9 ": lambda: info_nce_loss(
            *[z[:, : 8 + other]] * 2, group="world"
        ),
        "float32.*rank 1: 3 x 9 float64": lambda: ntxent_loss(
            z.double() if other else z, z, group="world"
        ),
        "temperature 0.5.*temperature 0.25": lambda: ntxent_loss(
            z, z, 0.5 - other / 4, group="world"
        ),
        "exchange=gather.*exchange=ring": lambda: ntxent_loss(
            z, z, group="world", exchange="ring" if other else "gather"
        ),
        "symmetric=False.*symmetric=True": lambda: info_nce_loss(
            z, z, group="world", symmetric=other
        ),
        "rank 1: z1: must be a tensor|z1: must be a tensor": lambda: ntxent_loss(
            None if other else z.half(), z.half(), group=dist.group.WORLD, check_values=False
        ),
        "rank 0: 2 x 9 .* rank 1: 3 x 9 .*check_values=False": lambda: info_nce_loss(
            *[z[: 2 + other]] * 2, group="world", check_values=False
        ),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


def work(rank, port):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://localhost:{port}", world_size=RANKS, rank=rank)
    for members in ([1, 3], [0, 2, 3], [*range(RANKS)]):
        group = dist.new_group(members)
        if rank not in members:
            with pytest.raises(ValueError, match="not one of its ranks"):
                ntxent_loss(*views(4, WIDTH, 0.5), group=group)
            continue
        per_rank = IMAGES // len(members)
        first = per_rank * members.index(rank)
        rows = slice(first, first + per_rank)
        compare_rows(group, rows)
        compare_weighted_rows(group, rows)
        if len(members) < RANKS:
            compare(group, rows)
            compare_cached(group, rows)
        if len(members) == 2:
            compare_compiled(group, rows, "aot_eager", only="ntxent")
            check_ops(group, rows)
    compare_half_precision(rows)
    compare_autocast(rows)
    no_gradient_travels(rows)
    what_a_forward_sends(rows)
    numbers_that_are_not_finite(rank)
    compare_clip(rank, RANKS, rows)
    refusals(rank)
    differences(rank)
    dist.barrier()
    dist.destroy_process_group()


def compiled_work(rank, port):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://localhost:{port}", world_size=2, rank=rank)
    compare_compiled(dist.new_group([0, 1]), slice(6 * rank, 6 * rank + 6), "inductor")
    dist.destroy_process_group()


def test_ranks_equal_one_process():
    start_processes(work, (free_port(),), RANKS, start_method="forkserver")


@pytest.mark.slow
def test_every_loss_of_a_group_is_one_graph():
    start_processes(compiled_work, (free_port(),), 2, start_method="forkserver")


def test_world_of_one_process():
    z1, z2 = views(5, 8, 0.5)
    assert torch.equal(ntxent_loss(z1, z2, group="world"), ntxent_loss(z1, z2))
