"""Losses over several ranks equal one process on the global batch, gradients included.

Every rank computes both and compares. Two ranks go through DDP, which averages gradients; three
average by hand, because importing DDP's compiler support in every process takes seconds.
"""

import socket
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn
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

IMAGES, WIDTH = 12, 9


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


def replicate(module, ranks):
    return DistributedDataParallel(module) if ranks == 2 else module


def gradients(module, ranks=1):
    """Gradients averaged over ranks; those of DDP are, and averaging keeps them."""
    found = {name.removeprefix("module."): p.grad.clone() for name, p in module.named_parameters()}
    if ranks > 1:
        for gradient in found.values():
            dist.all_reduce(gradient)
            gradient /= ranks
    module.zero_grad()
    return found


def compare(ranks, group, rows):
    x1, x2 = views(IMAGES, WIDTH, 0.5)
    labels = torch.tensor([0, 1, -1, 0, 2, -1, 0, 3, 3, -1, 2, 2])
    queue = views(4, 5, 0.5, seed=9)[0]
    whole, sharded = Model(), replicate(Model(), ranks)
    everyone = losses(labels, queue, None)
    mine = losses(labels[rows], queue, group)
    for name, function in everyone.items():
        expected = function(*whole(x1, x2))
        expected.backward()
        value = mine[name](*sharded(x1[rows], x2[rows]))
        value.backward()
        mean = value.detach().clone()
        dist.all_reduce(mean)
        print(f"comparing {name}")  # named in the captured output where one fails
        torch.testing.assert_close(mean / ranks, expected.detach())
        torch.testing.assert_close(gradients(sharded, ranks), gradients(whole))


def compare_rows(rows):
    z1, z2 = views(IMAGES, WIDTH, 0.5)
    expected = ntxent_loss(z1, z2, reduction="none").view(2, -1)[:, rows].flatten()
    for exchange in ("gather", "ring"):
        found = ntxent_loss(z1[rows], z2[rows], reduction="none", group="world", exchange=exchange)
        torch.testing.assert_close(found, expected)
    total = ntxent_loss(z1[rows], z2[rows], reduction="sum", group="world")
    torch.testing.assert_close(total, expected.sum())


def compare_weighted_rows(rows):
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
        loss = call(*mine, labels[rows], reduction="none", group="world")
        (loss @ weights.view(-1, IMAGES)[:, rows].flatten()).backward()
        for part, leaf in zip(mine[:2], whole, strict=False):
            torch.testing.assert_close(part.grad, leaf.grad[rows])
        for part, leaf in zip(mine[2:], whole[2:], strict=True):
            assert (part.grad is None) == (leaf.grad is None)
            if leaf.grad is not None:
                dist.all_reduce(part.grad)
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


def no_gradient_travels(rows):
    """Backward sends one number for each row and side, never the (rows, D) gradient."""
    sent = []
    name = distributed._ALL_GATHER
    original = getattr(dist, name), dist.all_reduce

    def gather(out, tensor, **kwargs):
        sent.append(tensor.numel())
        return original[0](out, tensor, **kwargs)

    def reduce(tensor, **kwargs):
        sent.append(tensor.numel())
        return original[1](tensor, **kwargs)

    z1, z2 = (z[rows].requires_grad_() for z in views(IMAGES, 512, 0.5))
    loss = ntxent_loss(z1, z2, group="world")
    setattr(dist, name, gather)
    dist.all_reduce = reduce
    loss.backward()
    setattr(dist, name, original[0])
    dist.all_reduce = original[1]
    assert sent and max(sent) <= 2 * IMAGES


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


def compare_cached(ranks, rows):
    """Chunks within a rank, negatives from all ranks, one averaging by DDP."""
    x1, x2 = views(IMAGES, WIDTH, 0.5)
    torch.manual_seed(5)
    whole = nn.Linear(WIDTH, 5).double()
    torch.manual_seed(5)
    sharded = replicate(nn.Linear(WIDTH, 5).double(), ranks)
    ntxent_loss(whole(x1), whole(x2), 0.2).backward()
    cached_backward(sharded, [x1[rows], x2[rows]], NTXentLoss(0.2, group="world"), chunk_size=1)
    torch.testing.assert_close(gradients(sharded, ranks), gradients(whole))


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
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


def work(rank, ranks, port):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://localhost:{port}", world_size=ranks, rank=rank)
    per_rank = IMAGES // ranks
    rows = slice(rank * per_rank, (rank + 1) * per_rank)
    compare(ranks, dist.group.WORLD, rows)
    compare_rows(rows)
    compare_weighted_rows(rows)
    compare_half_precision(rows)
    compare_autocast(rows)
    no_gradient_travels(rows)
    compare_clip(rank, ranks, rows)
    compare_cached(ranks, rows)
    refusals(rank)
    differences(rank)
    if ranks == 3:
        pair = dist.new_group([0, 2])
        z1, z2 = views(4, WIDTH, 0.5)
        if rank == 1:
            with pytest.raises(ValueError, match="not one of its ranks"):
                ntxent_loss(z1, z2, group=pair)
        else:
            half = slice(0, 2) if rank == 0 else slice(2, 4)
            expected = ntxent_loss(z1, z2, reduction="none").view(2, -1)[:, half].flatten()
            for exchange in ("gather", "ring"):
                value = ntxent_loss(
                    z1[half], z2[half], reduction="none", group=pair, exchange=exchange
                )
                torch.testing.assert_close(value, expected)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_equal_one_process(ranks):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    spawn(work, args=(ranks, port), nprocs=ranks)


def test_world_of_one_process():
    z1, z2 = views(5, 8, 0.5)
    assert torch.equal(ntxent_loss(z1, z2, group="world"), ntxent_loss(z1, z2))
