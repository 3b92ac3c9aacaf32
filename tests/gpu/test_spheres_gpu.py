"""Nearest centre and MAD on a GPU against float64 formulas."""

import pytest
import torch

from selftaught.kernels import dispatch
from selftaught.losses import mad_loss_with_assignment, nearest_center
from tests.kernels.nearest_center_table import counted
from tests.losses import formulas
from tests.losses.test_spheres import points, semi_labels


@pytest.fixture(params=["triton", "cuda"])
def backend(request):
    cuda = torch.device("cuda")
    wanted = dispatch.Request(op="mad", device=cuda, dtype=torch.float32, width=128)
    why = dispatch.refusal(request.param, wanted)
    if why:
        pytest.skip(f"{request.param}: {why}")
    return request.param


@pytest.mark.parametrize("offset", [0.0, 10.0, 1e4])
@pytest.mark.parametrize("spread", [1.0, 1e-3])
@pytest.mark.parametrize("shape", [(5, 1, 17), (1000, 100, 128), (257, 1000, 512), (64, 7, 16)])
def test_nearest_center(shape, spread, offset, backend):
    x, c = points(*shape, spread=spread, offset=offset)
    truth, index = formulas.nearest(x, c)
    squared, found = nearest_center(x.float().cuda(), c.float().cuda(), backend=backend)
    assert torch.equal(found.cpu(), index)
    torch.testing.assert_close(squared.cpu().double(), truth, rtol=2e-6, atol=1e-12)


def test_many_rows_and_centers(backend):
    """As many as in a search: more blocks than the GPU runs at once, centres beyond its memory."""
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(100_000, 128, device="cuda", generator=generator)
    for count in (100, 5000, 65_536):
        c = torch.randn(count, 128, device="cuda", generator=generator)
        rows = counted(dispatch.load(backend).spheres, x, c)
        torch.testing.assert_close(rows[2], torch.bincount(rows[1], minlength=count))
        some = slice(None, None, 997)
        truth = torch.cdist(x[some].double(), c.double()).square()
        found = truth.gather(1, rows[1][some, None])[:, 0]
        assert (found <= truth.min(1).values * (1 + 2e-6)).all()
        torch.testing.assert_close(rows[0][some].double(), found, rtol=2e-6, atol=0)


@pytest.mark.parametrize("shape", [(1000, 100, 128), (257, 7, 512)])
def test_mad_and_its_gradient(shape, backend):
    x, c = points(*shape)
    labels = semi_labels(len(x))
    leaf = x.clone().requires_grad_()
    truth = formulas.mad(leaf, c, labels, 1.0, 1e-6)
    truth.sum().backward()
    ours = x.float().cuda().requires_grad_()
    found, _, _ = mad_loss_with_assignment(
        ours, c.float().cuda(), labels.cuda(), reduction="none", backend=backend
    )
    found.sum().backward()
    torch.testing.assert_close(found.detach().cpu().double(), truth.detach(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(ours.grad.cpu().double(), leaf.grad, rtol=1e-4, atol=1e-6)


def test_nothing_waits_for_the_device_and_a_graph_replays(backend):
    x, c = (t.float().cuda() for t in points(64, 100, 128))
    labels = semi_labels(64).cuda()
    x.requires_grad_()

    def step():
        loss, _, _ = mad_loss_with_assignment(x, c, labels, backend=backend)
        return loss, *torch.autograd.grad(loss, [x])

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        expected = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))
