"""Nearest centres and the MAD loss in C++ against direct formulas in float64."""

import sys

import pytest
import torch

from selftaught.kernels import dispatch, native, ops
from selftaught.kernels.cpp.spheres import CppSpheres
from selftaught.kernels.spheres import SphereOps
from selftaught.losses import mad_loss
from tests.kernels.nearest_center_table import counted
from tests.losses import formulas
from tests.losses.formulas import relative_error
from tests.ranks import run_ranks

PASSES = CppSpheres()
spheres = SphereOps(PASSES)
pytestmark = pytest.mark.skipif(bool(native.reason()), reason=native.reason() or "library is there")

VARIANTS = native.variants()
# Width and centres: every one of both with a whole and a broken block of the other.
SHAPES = [(width, 100) for width in (1, 2, 16, 17, 100, 128, 200, 512, 1100)]
SHAPES += [(width, many) for width in (17, 128) for many in (1, 2, 129, 1000)] + [(1100, 129)]
ROWS = 21_001


@pytest.fixture(params=VARIANTS)
def variant(request, monkeypatch):
    monkeypatch.setenv(native.VARIABLE, request.param)
    return request.param


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def points(rows: int, many: int, width: int, spread: float = 1.0, offset: float = 0.0, seed=0):
    """Rows `spread` away from centres, all moved by `offset`; float32 values in float64."""
    generator = torch.Generator().manual_seed(seed + rows + 31 * many + width)
    c = torch.randn(many, width, dtype=torch.float64, generator=generator) + offset
    noise = spread * torch.randn(rows, width, dtype=torch.float64, generator=generator)
    x = c[torch.randint(many, (rows,), generator=generator)] + noise
    return x.float().double(), c.float().double()


def assert_nearest(x, c, squared, index, active=None, rtol=1e-6):
    """`squared` is the distance to `index`, and no centre is nearer but for rounding."""
    distances = torch.cat([(part[:, None] - c).square().sum(2) for part in x.split(16)])
    if active is not None:
        distances = distances.masked_fill(~active, float("inf"))
    found = distances.gather(1, index[:, None])[:, 0]
    torch.testing.assert_close(squared.double(), found, rtol=rtol, atol=0)
    assert (found <= distances.min(1).values * (1 + 2 * rtol)).all()


@pytest.mark.parametrize(("width", "many"), SHAPES)
def test_every_shape(width, many, variant):
    x, c = points(61, many, width)
    squared, index = spheres.nearest_center(x.float(), c.float(), None, "auto")
    assert squared.dtype == torch.float32 and index.dtype == torch.int64
    assert_nearest(x, c, squared, index)
    squared, index = spheres.nearest_center(x, c, None, "auto")
    assert squared.dtype == torch.float64
    assert_nearest(x, c, squared, index, rtol=1e-14)


@pytest.mark.parametrize("rows", [1, 2, 5, 47, 48, 49, 97, 1001])
def test_every_number_of_rows(rows):
    x, c = points(rows, 37, 19)
    assert_nearest(x, c, *spheres.nearest_center(x.float(), c.float(), None, "auto"))


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e2, 1e4])
@pytest.mark.parametrize("spread", [0.0, 1e-4, 1e-2, 1.0, 10.0])
def test_translation_and_collapse(spread, offset, variant):
    x, c = points(150, 100, 128, spread, offset)
    squared, index = spheres.nearest_center(x.float(), c.float(), None, "auto")
    assert_nearest(x, c, squared, index)


@pytest.mark.parametrize("gap", [0.0, 1e-6, 1e-4])
@pytest.mark.parametrize("width", [128, 4000])
@pytest.mark.parametrize("apart", [0.0, 3.0])
def test_centers_that_are_nearly_equal(gap, width, apart, variant):
    """Scores cannot tell these centres apart; direct differences can."""
    generator = torch.Generator().manual_seed(3)
    base = 3 * torch.randn(6, width, generator=generator)
    # Two groups on both sides of the mean: all products of a score have one sign.
    base += apart * torch.tensor([1.0, -1.0]).repeat(3)[:, None]
    c = torch.cat([base, base + gap * torch.randn(6, width, generator=generator), base])
    x = base[torch.arange(90) % 6] + 0.01 * torch.randn(90, width, generator=generator)
    squared, index = spheres.nearest_center(x, c, None, "auto")
    assert_nearest(x.double(), c.double(), squared, index)
    assert (index < 12).all()
    if gap == 0:
        assert (index < 6).all()


@pytest.mark.parametrize("size", [0.0, 1e-7, 1e-3, 1.0, 1e3, 1e5, 1e6, 1e9])
def test_the_index_is_the_first_smallest_direct_distance(size, variant):
    """On a sphere about their mean all centres are about as far; taken alone they need no score."""
    generator = torch.Generator().manual_seed(5)
    c = torch.nn.functional.normalize(torch.randn(40, 33, generator=generator), dim=1)
    c = torch.cat([c, -c])
    x = size * torch.randn(50, 33, generator=generator)
    alone = [spheres.nearest_center(x, c, one, "auto")[0] for one in torch.eye(80).bool()]
    truth = torch.stack(alone, 1)
    squared, index = spheres.nearest_center(x, c, None, "auto")
    assert torch.equal(squared, truth.min(1).values)
    assert torch.equal(index, (truth == squared[:, None]).int().argmax(1))


def test_ties_go_to_the_smallest_index(variant):
    c = torch.zeros(700, 3)
    squared, index = spheres.nearest_center(torch.ones(50, 3), c, None, "auto")
    assert (index == 0).all() and (squared == 3).all()
    active = torch.arange(700) >= 650
    _, index = spheres.nearest_center(torch.ones(50, 3), c, active, "auto")
    assert (index == 650).all()
    c = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, -1.0]])
    _, index = spheres.nearest_center(torch.tensor([[0.0, 0.0], [0.0, 3.0]]), c, None, "auto")
    assert index.tolist() == [1, 1]


def test_a_far_center_does_not_blur_the_others(variant):
    x, c = points(90, 40, 64)
    c[13] = 3e4
    squared, index = spheres.nearest_center(x.float(), c.float(), None, "auto")
    assert_nearest(x, c, squared, index)
    far = x + 2e5
    far = far.float().double()
    assert_nearest(far, c, *spheres.nearest_center(far.float(), c.float(), None, "auto"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_with_norms_above_256(dtype):
    x, c = (40 * t for t in points(60, 50, 128))
    low, low_c = x.to(dtype), c.to(dtype)
    assert low.float().norm(dim=1).max() > 256
    squared, index = spheres.nearest_center(low, low_c, None, "auto")
    assert squared.dtype == torch.float32
    assert_nearest(low.double(), low_c.double(), squared, index)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("many", [1, 5, 1000])
def test_rows_that_are_not_finite(value, many, variant):
    x, c = (t.float() for t in points(70, many, 20))
    good = spheres.nearest_center(x, c, None, "auto")
    x[[0, 33, 69]] = torch.where(torch.arange(20) == 19, value, x[[0, 33, 69]])
    squared, index, counts = counted(PASSES, x, c, None)
    bad = torch.zeros(70, dtype=torch.bool)
    bad[[0, 33, 69]] = True
    assert squared[bad].isnan().all() and (index[bad] == -1).all()
    assert torch.equal(squared[~bad], good[0][~bad]) and torch.equal(index[~bad], good[1][~bad])
    assert counts.sum() == 67
    by_x, by_c = spheres.nearest_center_backward(
        torch.ones(70), x, c, None, "auto", squared, index, [True, True]
    )
    assert by_x[bad].isnan().all() and by_x[~bad].isfinite().all()
    assert by_c[0].isnan().all() and by_c[1:].isfinite().all()


def test_no_active_center_and_centers_that_are_not_finite(variant):
    x, c = (t.float() for t in points(70, 5, 20))
    none = torch.zeros(5, dtype=torch.bool)
    squared, index, counts = counted(PASSES, x, c, none)
    assert squared.isnan().all() and (index == -1).all() and (counts == 0).all()
    c[2, 3] = float("nan")
    squared, index = spheres.nearest_center(x, c, None, "auto")
    assert squared.isnan().all() and (index == -1).all()
    active = torch.arange(5) != 2
    squared, index = spheres.nearest_center(x, c, active, "auto")
    assert_nearest(x.double(), c.double().nan_to_num(), squared, index, active)


def test_scores_that_overflow_are_reported(variant):
    c = torch.tensor([[1.8e19], [-1.8e19]])
    squared, index = spheres.nearest_center(torch.tensor([[1.8e19], [1.0]]), c, None, "auto")
    assert index[0] == -1 and squared[0].isnan()
    assert index[1] >= 0 and squared[1] == torch.tensor(1.8e19).square()


@pytest.mark.parametrize("many", [9, 1000])
def test_inactive_centers_and_counts(many):
    x, c = points(501, many, 17)
    active = torch.arange(many) % 3 != 1
    squared, index, counts = counted(PASSES, x.float(), c.float(), active)
    assert_nearest(x, c, squared, index, active)
    assert active[index].all()
    assert torch.equal(counts, torch.bincount(index, minlength=many))


def mad_and_gradients(x, c, y, eta, eps, dtype):
    low = [t.detach().to(dtype).requires_grad_() for t in (x, c)]
    loss, squared, index = ops.mad(*low, y, None, eta, eps, "auto", "cpp")
    weights = torch.linspace(0.5, 1.5, len(y), dtype=loss.dtype)
    return loss, squared, index, torch.autograd.grad((loss * weights).sum(), low)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1, 1), (37, 100, 128), (64, 7, 16), (301, 11, 100)])
def test_mad_and_its_gradients(shape, dtype, variant):
    x, c = (t.to(dtype).double().requires_grad_() for t in points(*shape))
    y = torch.arange(shape[0]) % 3 - 1
    truth = formulas.mad(x, c, y, 0.7, 0.1)
    expected = formulas.gradients(truth, [x, c])
    loss, squared, index, found = mad_and_gradients(x, c, y.to(torch.int64), 0.7, 0.1, dtype)
    tolerance = {torch.float64: 1e-13, torch.float32: 2e-6}.get(dtype, torch.finfo(dtype).eps)
    torch.testing.assert_close(loss.double(), truth.detach(), rtol=min(tolerance, 2e-6), atol=0)
    assert_nearest(x.detach(), c.detach(), squared, index)
    for value, gradient in zip(found, expected, strict=True):
        assert value.dtype == dtype
        assert relative_error(value, gradient) < tolerance


@pytest.mark.parametrize("squared", [0.0, 1e-20, 1e-12, 1e-8, 1e-6, 1e-3, 1.0, 1e3, 1e6, 1e12])
@pytest.mark.parametrize("eta, eps", [(1.0, 1e-6), (1.0, 1e-12), (1e-10, 1e-21)])
def test_known_abnormal_gradient_at_every_distance(squared, eta, eps, variant):
    """With the last pair the square of squared + eps is no float32 number."""
    c = torch.tensor([[0.0, 0.0, 0.0], [2e7, 2e7, 2e7]])
    x = torch.tensor([[squared**0.5, 0.0, 0.0], [1e-11, 0.0, 0.0]], requires_grad=True)
    loss = ops.mad(x, c, torch.tensor([-1, -1]), None, eta, eps, "auto", "cpp")[0]
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    exact = x.detach().double()
    expected = -2 * eta * exact / (exact.square().sum(1, keepdim=True) + eps) ** 2
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("distance", [0.0, 1e-6, 1e-3, 1.0])
def test_gradcheck(distance):
    x, c = points(9, 3, 4)
    x = c[torch.arange(9) % 3] + distance * (x - c[torch.arange(9) % 3])
    y = torch.arange(9) // 3 - 1
    inputs = (x.requires_grad_(), c.requires_grad_())
    active = torch.tensor([True, True, True])
    assert torch.autograd.gradcheck(
        lambda a, b: ops.mad(a, b, y, active, 0.7, 0.3, "auto", "cpp")[0], inputs
    )
    assert torch.autograd.gradcheck(
        lambda a, b: ops.nearest_center(a, b, active, "auto", "cpp")[0], inputs
    )


def test_unknown_semi_label_poisons_its_row():
    x, c = (t.float().requires_grad_() for t in points(3, 4, 8))
    loss = ops.mad(x, c, torch.tensor([0, 2, 1]), None, 1.0, 1e-6, "auto", "cpp")[0]
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    assert loss.isnan().tolist() == [False, True, False]
    assert gradient.isnan().all(1).tolist() == [False, True, False]


def test_only_wanted_gradients():
    x, c = (t.float() for t in points(30, 4, 8))
    squared, index = spheres.nearest_center(x, c, None, "auto")
    passed = (torch.rand(30), x, c, None, "auto", squared, index)
    both = spheres.nearest_center_backward(*passed, [True, True])
    for needs in ([True, False], [False, True], [False, False]):
        found = spheres.nearest_center_backward(*passed, needs)
        for value, whole, need in zip(found, both, needs, strict=True):
            assert torch.equal(value, whole) if need else value.numel() == 0


def test_inputs_of_any_layout():
    x, c = (t.float() for t in points(40, 6, 12))
    y = torch.arange(80, dtype=torch.int32)[::2] % 3 - 1
    active = torch.tensor([1, 0] * 6, dtype=torch.bool)[::2]
    strided = (x.T.contiguous().T, torch.cat([c, c], 1)[:, :12], y, active)
    found = spheres.mad(*strided, 0.5, 0.1, "auto")
    plain = spheres.mad(x, c, y.long().contiguous(), active.contiguous(), 0.5, 0.1, "auto")
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    grads = torch.rand(2, 40).T[:, 0], torch.full((1,), 0.25).expand(40)
    for grad in grads:
        one = spheres.mad_backward(grad, *strided, 0.5, 0.1, "auto", *found, [True, True])
        two = spheres.mad_backward(
            grad.clone(), x, c, y.long(), active, 0.5, 0.1, "auto", *plain, [True, True]
        )
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    with pytest.raises(ValueError, match="centers: must have at least one row"):
        spheres.nearest_center(x, c[:0], None, "auto")
    assert spheres.nearest_center(x[:0], c, None, "auto")[1].shape == (0,)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        *((torch.float32, name) for name in VARIANTS),
        *((torch.float64, name) for name in VARIANTS[-1:]),
    ],
)
def test_bits_do_not_depend_on_threads_or_batch(dtype, name, threads, monkeypatch):
    monkeypatch.setenv(native.VARIABLE, name)
    # So many that the backward is given all the threads too.
    x, c = (t.to(dtype) for t in points(ROWS, 150, 100, offset=3.0))
    y = torch.arange(ROWS) % 3 - 1
    grad = torch.rand(ROWS, dtype=dtype)
    runs = []
    for count in (1, 3, 8):
        threads(count)
        outputs = spheres.mad(x, c, y, None, 0.7, 1e-3, "auto")
        by = spheres.mad_backward(grad, x, c, y, None, 0.7, 1e-3, "auto", *outputs, [True, True])
        runs.append((*outputs, *by))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    for part in order.split([1, 2, 7, 50, 941, 20_000]):
        outputs = spheres.mad(x[part], c, y[part], None, 0.7, 1e-3, "auto")
        assert all(torch.equal(a, b[part]) for a, b in zip(outputs, runs[0], strict=False))


def test_instruction_sets_agree(monkeypatch):
    x, c = points(500, 150, 100, offset=3.0)
    y = torch.arange(500) % 3 - 1
    results = []
    for name in VARIANTS:
        monkeypatch.setenv(native.VARIABLE, name)
        loss, _, index, by = mad_and_gradients(x, c, y, 0.7, 1e-3, torch.float32)
        results.append((index, loss.detach(), *by))
    for index, *values in results[1:]:
        assert torch.equal(index, results[0][0])
        for value, first in zip(values, results[0][1:], strict=True):
            torch.testing.assert_close(value, first, rtol=2e-6, atol=1e-6)


def test_sums_by_center_are_exact_to_rounding():
    """A float accumulator would lose three digits over so many rows."""
    x, c = (t.float() for t in points(200_001, 1, 3))
    squared, index = spheres.nearest_center(x, c, None, "auto")
    _, by_c = spheres.nearest_center_backward(
        torch.ones(200_001), x, c, None, "auto", squared, index, [False, True]
    )
    expected = -2 * (x - c).double().sum(0, keepdim=True)
    torch.testing.assert_close(by_c.double(), expected, rtol=1e-6, atol=0)


def test_the_backend_serves_both_ops(monkeypatch):
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    for op in ("nearest_center", "mad"):
        cpu = torch.device("cpu")
        request = dispatch.Request(op=op, device=cpu, dtype=torch.float32, width=8)
        assert dispatch.choose(request) == "cpp"
    x, c = (t.float().requires_grad_() for t in points(20, 4, 8))
    y = torch.arange(20) % 3 - 1
    found = ops.mad(x, c, y, None, 1.0, 1e-6, "auto", "auto")
    assert torch.equal(found[0], spheres.mad(x, c, y, None, 1.0, 1e-6, "auto")[0])
    torch.library.opcheck(ops.mad, (x, c, y, None, 1.0, 1e-6, "auto", "cpp"))
    torch.library.opcheck(ops.nearest_center, (x, c, None, "auto", "cpp"))


def memory():
    """Bytes that loss and gradient take beside the gradient itself."""

    def kilobytes(field):
        with open("/proc/self/status") as handle:
            return next(int(line.split()[1]) for line in handle if line.startswith(field))

    x = torch.randn(65_536, 128, requires_grad=True)
    c, y = torch.randn(100, 128), torch.randint(-1, 2, (65_536,))
    mad_loss(x[:64].detach().requires_grad_(), c, y[:64], backend="cpp").backward()
    before = kilobytes("VmRSS")
    mad_loss(x, c, y, backend="cpp").backward()
    return 1024 * (kilobytes("VmHWM") - before) - x.grad.numel() * 4


@pytest.mark.skipif(sys.platform != "linux", reason="memory in use is read from /proc")
def test_memory_beside_the_gradient():
    assert run_ranks(1, memory)[0] < 64e6
