"""The fused contrastive losses on a GPU against float64 formulas, and what they promise there."""

import pytest
import torch

from selftaught.kernels.dispatch import Request, refusal
from selftaught.losses import info_nce_loss, ntxent_loss
from tests.losses.formulas import relative_error, views
from tests.losses.test_contrastive import LOSSES, REGIMES, evaluate, labels_for, ours, theirs

# Share of the float64 gradient's length that a tier may be off by, at losses of 0.01 and above.
TIERS = {"fp32": 2e-6, "fp16": 5e-3, "bf16": 4e-2}


@pytest.fixture(params=["triton", "cuda"])
def backend(request, monkeypatch):
    wanted = Request(op="ntxent", device=torch.device("cuda"), dtype=torch.float32, width=128)
    why = refusal(request.param, wanted)
    if why:
        pytest.skip(f"{request.param}: {why}")
    return request.param


def on_gpu(loss, z1, z2, tau, backend, precision, dtype=torch.float32):
    leaves = [z.to("cuda", dtype).requires_grad_() for z in (z1, z2)]
    scale = torch.tensor(tau, device="cuda", requires_grad=True)
    settings = {"backend": backend, "precision": precision}
    if loss == "supcon":
        from selftaught.losses import supcon_loss

        labels = labels_for(len(z1)).cuda()
        rows = supcon_loss(*leaves, labels, scale, reduction="none", **settings)
    else:
        rows = ours(loss, *leaves, scale, **settings)
    weights = torch.linspace(0.5, 1.5, rows.numel(), device="cuda")
    return [rows, *torch.autograd.grad((rows * weights).sum(), [*leaves, scale])]


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("regime", REGIMES)
def test_equal_to_float64(loss, regime, tier, backend):
    images, width, noise, tau, _ = REGIMES[regime]
    if backend == "cuda" and width > 256:
        pytest.skip("wider than the kernels of this backend")
    z1, z2 = (z.float().double() for z in views(images, width, noise))
    tau = float(torch.tensor(tau))
    truth = evaluate(theirs, loss, z1, z2, tau, torch.float64)
    found = on_gpu(loss, z1, z2, tau, backend, tier)
    for value, expected in zip(found, truth, strict=True):
        assert value.dtype == torch.float32
        allowed = TIERS[tier] * max(1.0, 0.1 / tau)
        assert relative_error(value.cpu(), expected) < allowed


def test_second_run_is_bit_equal(backend):
    z1, z2 = views(300, 128, 0.5)
    runs = [on_gpu("ntxent", z1, z2, 0.1, backend, "fp32") for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_nothing_waits_for_the_device(backend):
    z1, z2 = (z.float().cuda().requires_grad_() for z in views(300, 128, 0.5))
    ntxent_loss(z1, z2, 0.1, backend=backend).backward()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        ntxent_loss(z1, z2, 0.1, backend=backend).backward()
        info_nce_loss(z1, z2, symmetric=True, backend=backend).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_cuda_graph(backend):
    z1, z2 = (z.float().cuda().requires_grad_() for z in views(256, 128, 0.5))

    def step():
        loss = ntxent_loss(z1, z2, 0.1, backend=backend)
        return loss, *torch.autograd.grad(loss, [z1, z2])

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        z1.add_(0.1)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))


def test_memory_grows_with_rows_not_with_pairs(backend):
    z1, z2 = (torch.randn(32768, 128, device="cuda", requires_grad=True) for _ in range(2))
    ntxent_loss(z1, z2, 0.1, backend=backend, precision="fp16").backward()
    z1.grad = z2.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ntxent_loss(z1, z2, 0.1, backend=backend, precision="fp16").backward()
    gradients = 2 * z1.numel() * 4
    most = 80e6 if backend == "triton" else 250 * 2**20
    assert torch.cuda.max_memory_allocated() - before - gradients < most


def test_grad_scaler_and_autocast(backend):
    z1, z2 = (z.half().cuda() for z in views(64, 128, 0.5))
    leaves = [z.clone().requires_grad_() for z in (z1, z2)]
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    with torch.autocast("cuda", torch.float16):
        loss = ntxent_loss(*leaves, 0.1, backend=backend)
    assert loss.dtype == torch.float32
    scaler.scale(loss).backward()
    plain = [z.float().clone().requires_grad_() for z in (z1, z2)]
    ntxent_loss(*plain, 0.1, backend=backend).backward()
    for leaf, other in zip(leaves, plain, strict=True):
        assert relative_error(leaf.grad.float().cpu() / 1024, other.grad.cpu()) < 5e-3


def test_compile_fullgraph(backend):
    z1, z2 = (z.float().cuda().requires_grad_() for z in views(64, 128, 0.5))

    def step(a, b):
        return ntxent_loss(a, b, 0.1, backend=backend)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True)
    expected = torch.autograd.grad(step(z1, z2), [z1, z2])
    found = torch.autograd.grad(compiled(z1, z2), [z1, z2])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
