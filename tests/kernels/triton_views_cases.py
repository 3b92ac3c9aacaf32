"""Cases of test_triton_tables.py: NT-Xent and SupCon of two views against float64 formulas.

Run where TRITON_INTERPRET=1, or on a GPU.
"""

import pytest
import torch

pytest.importorskip("triton")

from torch.utils._python_dispatch import TorchDispatchMode

from selftaught.kernels.triton import factors, log_sums, tuning
from selftaught.losses import ntxent_loss, supcon_loss
from tests.kernels.triton_tiles_cases import DEVICE, INTERPRETED, small_blocks  # noqa: F401
from tests.losses import formulas
from tests.losses.formulas import relative_error, views

LAUNCHES = ["prepare_views", "sum_tiles", "merge_sums", "find_factors", "weighted_tiles"]
LAUNCHES = [*LAUNCHES, "finish_views", "aten.mean.out", "aten.ones_like.default"]
# Ops that launch nothing.
FREE = ("new_empty", "promote_types", "view", "unbind", "slice", "select", "detach")


class Recorder(TorchDispatchMode):
    """Names of all that a GPU would be given to do: kernels, and ops that are no mere views."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.seen, self.inside = [], False
        from triton.runtime.interpreter import GridExecutor

        launch = GridExecutor.__call__

        def recorded(executor, *args, **kwargs):
            self.seen.append(executor.fn.__name__)
            self.inside = True
            launch(executor, *args, **kwargs)
            self.inside = False

        monkeypatch.setattr(GridExecutor, "__call__", recorded)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "selftaught":
            keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
            with self:
                return function.redispatch(keys, *args, **(kwargs or {}))
        name = str(function)
        if not self.inside and name.split(".")[1] not in FREE:
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.skipif(not INTERPRETED, reason="counted by benchmarks/gpu_suite.py on a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("labels", [None, torch.arange(20) % 3 - 1])
def test_eight_launches_a_step(labels, dtype, monkeypatch):
    z1, z2 = (z.to(dtype).requires_grad_() for z in views(20, 16, 0.5))

    def step(tau, **settings):
        recorder = Recorder(monkeypatch)
        with recorder, monkeypatch.context():
            loss = run(z1, z2, labels, tau, check_values=False, **settings)
            torch.autograd.grad(loss, [z1, z2])
        return recorder.seen

    assert sorted(step(0.5)) == sorted(LAUNCHES)
    assert "sum_rows" in step(0.005)  # the shift for all rows would leave the range


def run(z1, z2, labels, tau, **settings):
    if labels is None:
        return ntxent_loss(z1, z2, tau, backend="triton", **settings)
    return supcon_loss(z1, z2, labels.to(DEVICE), tau, backend="triton", **settings)


def formula(z1, z2, labels, tau, normalize=True):
    if labels is None:
        return formulas.ntxent(z1, z2, tau, normalize=normalize)
    return formulas.supcon(z1, z2, labels, tau, normalize=normalize)


def derivatives(rows, weight, inputs):
    """Rows' losses, then gradients of their weighted sum, on the CPU."""
    found = torch.autograd.grad((rows * weight.to(rows)).sum(), inputs)
    return [value.detach().cpu() for value in (rows, *found)]


def labels_of(kind, images):
    labels = torch.arange(images) % 3
    return {
        "ntxent": None,
        "mixed": torch.where(
            torch.arange(images) % 4 == 0, -1, labels - (labels == 2) * 2**40 * -1
        ),
        "alone": torch.full((images,), -1),
        "one class": torch.zeros(images, dtype=torch.int64),
    }[kind]


def check(z1, z2, labels, tau, learnable=False, normalize=True, floor=None):
    """Errors at most twice those of eager float32, and a few units of what is computed with."""
    floor = floor or 4e-7 + 1e-8 / tau
    results = []
    weight = torch.linspace(0.5, 1.5, 2 * len(z1))
    for dtype, device in ((torch.float64, "cpu"), (torch.float32, "cpu"), (torch.float32, DEVICE)):
        inputs = [z.to(device, dtype).requires_grad_() for z in (z1, z2)]
        scale = torch.tensor(tau, dtype=dtype, device=device) if learnable else tau
        inputs += [scale.requires_grad_()] if learnable else []
        if len(results) < 2:
            rows = formula(*inputs[:2], labels, scale, normalize=normalize)
        else:
            rows = run(*inputs[:2], labels, scale, normalize=normalize, reduction="none")
        results.append(derivatives(rows, weight, inputs))
    for true, plain, ours in zip(*results, strict=True):
        assert ours.dtype == torch.float32
        error, allowed = relative_error(ours, true), 2 * relative_error(plain, true)
        assert error <= allowed + floor, f"{error} > {allowed}"


KINDS = ("ntxent", "mixed", "alone", "one class")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("images, width, tau", [(1, 3, 0.5), (9, 17, 0.2), (33, 16, 0.05)])
def test_equal_to_float64(kind, images, width, tau):
    z1, z2 = (z.float().double() for z in views(images, width, 0.4))
    tau = float(torch.tensor(tau))
    for learnable, normalize in ((True, True), (False, True), (True, False)):
        shrunk = (z1, z2) if normalize else (z1 / 8, z2 / 8)
        check(*shrunk, labels_of(kind, images), tau, learnable, normalize)


@pytest.mark.parametrize("kind", ["ntxent", "mixed"])
@pytest.mark.parametrize("tau", [0.005, 0.0125, 0.017, 10.0])
def test_extreme_temperatures_and_ties(kind, tau):
    z1, z2 = (z.float().double() for z in views(19, 16, 0.3))
    z1[3], z2[3], z1[7], z2[8] = z1[2], z1[2], z1[6], z1[8]
    check(z1, z2, labels_of(kind, 19), float(torch.tensor(tau)))


def test_small_losses_keep_their_digits():
    """Of losses of 1e-9 and less, where the plain formula has none, and of each row's gradient."""
    z1, z2 = (z.float().double() for z in views(20, 64, 0.05))
    tau = float(torch.tensor(0.03))
    inputs = [z.requires_grad_() for z in (z1, z2)]
    rows = ntxent_loss(*inputs, tau, reduction="none", backend="reference")
    true = derivatives(rows, torch.ones(40), inputs)
    inputs = [z.detach().float().to(DEVICE).requires_grad_() for z in inputs]
    ours = derivatives(run(*inputs, None, tau, reduction="none"), torch.ones(40), inputs)
    assert 0 < true[0].min() < true[0].max() < 1e-9
    assert ((ours[0] - true[0]) / true[0]).abs().max() < 2e-5
    for found, expected in zip(ours[1:], true[1:], strict=True):
        assert ((found - expected).norm(dim=1) / expected.norm(dim=1)).max() < 2e-5


def test_softmax_near_one_keeps_its_digits():
    z1, z2 = (z.float().double() for z in views(40, 16, 0.4))
    labels = (torch.arange(40) % 4).index_fill_(0, torch.arange(0, 40, 3), -1)
    check(z1, z2, labels, float(torch.tensor(0.006)), floor=1e-7)


def test_one_weight_above_all_others(monkeypatch):
    """In a later block of weights than the first: float16 holds it as well."""
    monkeypatch.setattr(factors, "BLOCK", 16)
    z1, z2 = (z.float().double().requires_grad_() for z in views(20, 16, 0.4))
    weight = torch.ones(40).index_fill_(0, torch.tensor([37]), 2.0**20)
    true = derivatives(formula(z1, z2, None, 0.5), weight, [z1, z2])
    inputs = [z.detach().float().to(DEVICE).requires_grad_() for z in (z1, z2)]
    rows = run(*inputs, None, 0.5, reduction="none", precision="fp16")
    for found, expected in zip(derivatives(rows, weight.to(DEVICE), inputs), true, strict=True):
        assert relative_error(found, expected) < 2e-3


@pytest.mark.parametrize("kind", ["ntxent", "mixed"])
def test_rounds_and_parts(kind, monkeypatch):
    monkeypatch.setattr(log_sums, "_slots", lambda pair: 2)
    monkeypatch.setattr(tuning, "visits_each", lambda *_: 3)
    z1, z2 = (z.float().double() for z in views(75, 16, 0.4))
    check(z1, z2, labels_of(kind, 75), 0.25)


@pytest.mark.parametrize("kind", ["ntxent", "mixed"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(kind, dtype):
    """Gradients in the dtype of the views, as good as it is, however the loss is scaled."""
    z1, z2 = (z.to(dtype).double().requires_grad_() for z in views(21, 16, 0.4))
    labels = labels_of(kind, 21)
    true = torch.autograd.grad(formula(z1, z2, labels, 0.25).mean(), [z1, z2])
    for size in (1.0, 2.0**12):
        inputs = [z.detach().to(DEVICE, dtype).requires_grad_() for z in (z1, z2)]
        loss = run(*inputs, labels, 0.25) * size
        for found, expected in zip(torch.autograd.grad(loss, inputs), true, strict=True):
            assert found.dtype == dtype
            assert relative_error(found.cpu().double() / size, expected) < torch.finfo(dtype).eps


def test_reductions_layouts_and_needs():
    labels = labels_of("mixed", 12)
    wide = views(12, 40, 0.5)[0].float().to(DEVICE)
    first, second = wide[:, 3:20], wide[:, 20:37].T.contiguous().T
    rows = run(first, second, labels, 0.3, reduction="none")
    expected = formula(first.cpu().double(), second.cpu().double(), labels, 0.3)
    assert relative_error(rows.cpu(), expected) < 1e-6
    one = first.clone().requires_grad_()
    for reduction, scale in (("sum", 1.0), ("mean", 1 / 24)):
        loss = run(one, second, labels, 0.3, reduction=reduction)
        torch.testing.assert_close(loss, rows.sum() * scale)
        (found,) = torch.autograd.grad(loss, one)
        (wanted,) = torch.autograd.grad(run(one, second, labels, 0.3, reduction="none").sum(), one)
        torch.testing.assert_close(found, wanted * scale)
    scale = torch.tensor(0.3, device=DEVICE, requires_grad=True)
    run(first, second, labels, scale).backward()
    assert scale.grad.isfinite()


@pytest.mark.parametrize("labels", [None, torch.tensor([0, 1, -1, 0])])
def test_op(labels):
    """Schema, fake results and derivatives of the op and of its backward."""
    from selftaught.kernels import ops

    z1, z2 = (z.float().to(DEVICE) for z in views(4, 16, 0.5))
    tau, labels = torch.tensor(0.3, device=DEVICE), None if labels is None else labels.to(DEVICE)
    scale = (None, 0.3) if labels is None else (tau.requires_grad_(), 0.0)
    reduction = "mean" if labels is None else "none"
    passed = (z1, z2, labels, *scale, True, reduction, "auto")
    leaves = (z1.requires_grad_(), z2.requires_grad_(), *passed[2:])
    torch.library.opcheck(ops.views, (*leaves, "triton"))
    passed = tuple(p.detach() if isinstance(p, torch.Tensor) else p for p in passed)
    kept = ops.views(*passed, "triton")
    back = torch.ops.selftaught.views_backward.default
    needs = [True, labels is None, labels is not None]
    torch.library.opcheck(back, (torch.ones_like(kept[0]), *passed, *kept, needs, "triton"))
