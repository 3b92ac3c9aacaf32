"""Nearest centres and the losses on them against float64 formulas."""

import pytest
import torch

from selftaught.kernels.reference import spheres
from selftaught.losses import (
    DeepSADLoss,
    MADLoss,
    mad_loss,
    mad_loss_with_assignment,
    nearest_center,
)
from tests.losses import formulas
from tests.losses.formulas import relative_error

pytestmark = pytest.mark.usefixtures("every_backend")

SHAPES = [(1, 1, 1), (5, 1, 17), (37, 100, 128), (64, 7, 16), (3, 11, 100), (20, 300, 3)]


def points(rows: int, centers: int, width: int, spread: float = 1.0, offset: float = 0.0):
    """Rows `spread` away from centres, all of it moved by `offset`; exact in float32."""
    generator = torch.Generator().manual_seed(rows + 31 * centers + width)
    c = torch.randn(centers, width, dtype=torch.float64, generator=generator) + offset
    noise = spread * torch.randn(rows, width, dtype=torch.float64, generator=generator)
    x = c[torch.arange(rows) % centers] + noise
    return x.float().double(), c.float().double()


def semi_labels(rows: int) -> torch.Tensor:
    return torch.arange(rows) % 3 - 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_nearest_center(shape, dtype):
    x, c = (t.to(dtype).double() for t in points(*shape))
    truth, index = formulas.nearest(x, c)
    squared, found = nearest_center(x.to(dtype), c.to(dtype))
    assert found.dtype == torch.int64
    assert torch.equal(found, index)
    assert squared.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(squared.double(), truth, rtol=1e-6, atol=0)


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e2, 1e4])
@pytest.mark.parametrize("spread", [1e-4, 1e-2, 1.0])
def test_distances_survive_collapse_and_offset(spread, offset):
    x, c = points(200, 20, 128, spread, offset)
    truth, index = formulas.nearest(x, c)
    squared, found = nearest_center(x.float(), c.float())
    assert torch.equal(found, index)
    torch.testing.assert_close(squared.double(), truth, rtol=1e-6, atol=0)


def test_ties_go_to_the_smallest_index():
    c = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, -1.0]])
    squared, index = nearest_center(torch.tensor([[0.0, 0.0], [0.0, 3.0], [5.0, 0.0]]), c)
    assert index.tolist() == [1, 1, 0]
    assert squared.tolist() == [1.0, 4.0, 9.0]


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("spread", [0.0, 1e-4, 1.0])
def test_of_equal_centers_the_first_is_nearest(spread, offset):
    x, c = points(60, 7, 33, spread, offset)
    order = torch.randperm(21, generator=torch.Generator().manual_seed(1))
    copies = c.repeat(3, 1)[order]
    truth, index = formulas.nearest(x, copies)
    squared, found = nearest_center(x.float(), copies.float())
    assert (
        torch.equal(found, index)
        and (copies[:7][found[found < 7]] == copies[found[found < 7]]).all()
    )
    torch.testing.assert_close(squared.double(), truth, rtol=1e-6, atol=0)


@pytest.mark.parametrize("copies", [2, 20])
@pytest.mark.parametrize("spread", [1e-1, 1e-4])
def test_one_of_many_close_centers(spread, copies):
    rows, c = points(300, 20, 128)
    generator = torch.Generator().manual_seed(0)
    c = c.repeat(copies, 1)
    c = (c + spread * torch.randn(c.shape, dtype=c.dtype, generator=generator)).float()
    x = c[torch.arange(300) % len(c)] + spread * torch.randn(rows.shape, generator=generator)
    truth, index = formulas.nearest(x.double(), c.double())
    squared, found = nearest_center(x, c)
    assert torch.equal(found, index)
    torch.testing.assert_close(squared.double(), truth, rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", [30.0, 1e4])
def test_squares_beyond_the_range_of_float16(scale):
    x, c = (t.clamp(-5, 5).mul(scale).half() for t in points(50, 40, 128))
    assert x.float().norm(dim=1).min() > 256
    truth, index = formulas.nearest(x.double(), c.double())
    squared, found = nearest_center(x, c)
    assert torch.equal(found, index)
    torch.testing.assert_close(squared.double(), truth, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_row_does_not_depend_on_its_batch(dtype):
    x, c = (t.to(dtype) for t in points(150, 70, 40))
    y = semi_labels(150)

    def rows(x, y):
        x = x.clone().requires_grad_()
        loss, squared, index = mad_loss_with_assignment(x, c, y, reduction="none")
        return loss.detach(), squared, index, torch.autograd.grad(loss.sum(), x)[0]

    whole = rows(x, y)
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    mixed = rows(x[order], y[order])
    parts = [rows(x[a:b], y[a:b]) for a, b in ((0, 1), (1, 76), (76, 150))]
    for place, value in enumerate(whole):
        assert torch.equal(mixed[place], value[order])
        assert torch.equal(torch.cat([part[place] for part in parts]), value)


def test_inactive_centers_are_never_nearest():
    x, c = points(40, 9, 17)
    active = torch.arange(9) % 2 == 0
    truth, index = formulas.nearest(x, c, active)
    far = torch.where(active[:, None], c, 1e30)
    for centers in (c, far):
        squared, found = nearest_center(x, centers, active=active)
        assert torch.equal(found, index)
        torch.testing.assert_close(squared, truth)
    loss, squared, found = mad_loss_with_assignment(x, c, semi_labels(40), active=active)
    torch.testing.assert_close(loss, formulas.mad(x, c, semi_labels(40), 1.0, 1e-6, active).mean())
    assert torch.equal(found, index)
    torch.testing.assert_close(squared, truth)


def test_long_inputs_are_searched_in_parts(monkeypatch):
    x, c = points(50, 6, 8)
    whole = nearest_center(x, c)
    monkeypatch.setattr(spheres, "CHUNK_SCORES", 40)
    parts = nearest_center(x, c)
    assert torch.equal(parts[0], whole[0])
    assert torch.equal(parts[1], whole[1])


def test_gradients_of_the_distance():
    x, c = (t.requires_grad_() for t in points(23, 5, 16))
    truth = torch.autograd.grad(formulas.nearest(x, c)[0].square().sum(), [x, c])
    found = torch.autograd.grad(nearest_center(x, c)[0].square().sum(), [x, c])
    torch.testing.assert_close(found, truth)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_mad_loss_and_its_gradients(shape, dtype):
    x, c = (t.to(dtype).double() for t in points(*shape))
    y = semi_labels(shape[0])
    x.requires_grad_(), c.requires_grad_()
    truth = formulas.mad(x, c, y, 0.7, 0.1)
    expected = torch.autograd.grad(truth.mean(), [x, c])
    low = [t.detach().to(dtype).requires_grad_() for t in (x, c)]
    rows = mad_loss(*low, y, eta=0.7, eps=0.1, reduction="none")
    found = torch.autograd.grad(rows.mean(), low)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, torch.finfo(dtype).eps)
    torch.testing.assert_close(rows.double(), truth, rtol=min(tolerance, 1e-5), atol=0)
    for value, gradient in zip(found, expected, strict=True):
        assert value.dtype == dtype
        assert relative_error(value, gradient) < tolerance


@pytest.mark.parametrize("squared", [0.0, 1e-20, 1e-12, 1e-8, 1e-6, 1e-3, 1.0, 1e3, 1e6])
def test_known_abnormal_gradient_at_every_distance(squared):
    c = torch.tensor([[0.0, 0.0, 0.0], [2e4, 2e4, 2e4]])
    x = torch.tensor([[squared**0.5, 0.0, 0.0]], requires_grad=True)
    y = torch.tensor([-1])
    (gradient,) = torch.autograd.grad(mad_loss(x, c, y), x)
    exact = x.detach().double()
    expected = -2 * exact / (exact.square().sum() + 1e-6) ** 2
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("label", [-1, 0, 1])
@pytest.mark.parametrize("distance", [0.0, 1e-8, 1e-4, 1e-2, 1.0])
def test_gradcheck_as_the_distance_goes_to_zero(distance, label):
    """By rows and by centres; eps is far above the square of gradcheck's steps."""
    x, c = points(4, 3, 5)
    toward = formulas.unit(x - c[torch.arange(4) % 3])
    x = (c[torch.arange(4) % 3] + distance * toward).requires_grad_()
    y = torch.full((4,), label)
    assert torch.autograd.gradcheck(
        lambda a, b: mad_loss(a, b, y, eta=0.7, eps=1e-2, reduction="none"),
        (x, c.requires_grad_()),
    )


def test_assignment_comes_with_the_loss_and_carries_no_gradient():
    x, c = points(12, 4, 8)
    x.requires_grad_()
    loss, squared, index = mad_loss_with_assignment(x, c, semi_labels(12))
    assert loss.requires_grad and not squared.requires_grad and not index.requires_grad
    expected = nearest_center(x, c)
    assert torch.equal(squared, expected[0])
    assert torch.equal(index, expected[1])


def test_deep_sad_is_one_center():
    x, c = points(9, 1, 16)
    y = semi_labels(9).to(torch.int8)
    squared = (x - c[0]).square().sum(1)
    known = (squared + 1e-6) ** y.double()
    expected = torch.where(y == 0, squared, 2 * known).sum()
    torch.testing.assert_close(DeepSADLoss(c[0], eta=2.0, reduction="sum")(x, y), expected)


def test_deep_sads_gradient_by_hand():
    x, c = points(9, 1, 16)
    x.requires_grad_()
    y = torch.tensor([-1, 0, 1] * 3)
    DeepSADLoss(c[0], reduction="sum", eps=0.5)(x, y).backward()
    apart = x.detach() - c[0]
    factor = torch.where(y == -1, -((apart.square().sum(1) + 0.5) ** -2), 1)
    torch.testing.assert_close(x.grad, 2 * factor[:, None] * apart, rtol=1e-14, atol=1e-15)


def test_module_keeps_and_prunes_centers():
    x, c = points(30, 6, 8)
    y = semi_labels(30)
    loss = MADLoss(c)
    assert torch.equal(loss(x, y), mad_loss(x, c, y))
    assert set(loss.state_dict()) == {"centers", "active"}
    loss.active[2] = False
    assert torch.equal(loss(x, y), mad_loss(x, c, y, active=torch.arange(6) != 2))
    assert not list(loss.parameters())


def test_autocast_changes_nothing():
    x, c = (t.float() for t in points(30, 6, 16))
    plain = mad_loss(x, c, semi_labels(30), reduction="none")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mad_loss(x, c, semi_labels(30), reduction="none"), plain)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_not_finite_are_reported(value):
    x, c = (t.float() for t in points(6, 4, 8))
    x[2, 3] = value
    x.requires_grad_()
    squared, index = nearest_center(x, c, check_values=False)
    assert index.tolist()[2] == -1 and squared[2].isnan()
    assert squared.isnan().sum() == 1 and (index >= 0).sum() == 5
    (gradient,) = torch.autograd.grad(squared.sum(), x)
    assert gradient[2].isnan().all() and gradient[[0, 1, 3, 4, 5]].isfinite().all()


def test_unchecked_values_give_a_nan_loss():
    x, c = (t.float() for t in points(4, 4, 8))
    x[1, 2] = float("nan")
    y = torch.tensor([0, 0, 2, 1])
    settings = {"reduction": "none", "check_values": False}
    loss, squared, center = mad_loss_with_assignment(x.requires_grad_(), c, y, **settings)
    assert loss.isnan().tolist() == [False, True, True, False]
    assert squared.isnan().tolist() == [False, True, False, False]
    assert center.tolist()[1] == -1 and (center[[0, 2, 3]] >= 0).all()
    loss.mean().backward()
    assert torch.equal(nearest_center(x, c, check_values=False)[1], center)
    assert MADLoss(c, check_values=False)(x, y).isnan()
    bad = c.clone()
    bad[0, 0] = float("nan")
    assert mad_loss(x, bad, y, check_values=False).isnan()


def test_wrong_arguments_are_named():
    x, c = (t.float() for t in points(4, 3, 8))
    y = torch.zeros(4, dtype=torch.int64)
    bad = x.clone()
    bad[3, 1] = float("inf")
    none = torch.zeros(3, dtype=torch.bool)
    calls = {
        "x: must have at least one row": lambda: nearest_center(x[:0], c),
        "centers: must have at least one row": lambda: nearest_center(x, c[:0]),
        "centers: width D is 5, but x has D = 8": lambda: nearest_center(x, c[:, :5]),
        "x: must hold floating-point numbers": lambda: nearest_center(x.int(), c),
        "x: must be finite, but row 3": lambda: nearest_center(bad, c),
        "centers: must be finite": lambda: nearest_center(x, bad),
        "active: must be (3,) booleans": lambda: nearest_center(x, c, active=none[:2]),
        "active: at least one centre": lambda: nearest_center(x, c, active=none),
        "backend: got 'faiss'": lambda: nearest_center(x, c, backend="faiss"),
        "precision: got 'fp8'": lambda: nearest_center(x, c, precision="fp8"),
        "semi_labels: got 2, allowed are -1, 0, 1": lambda: mad_loss(x, c, y + 2),
        "semi_labels: must be a tensor of integers": lambda: mad_loss(x, c, y.float()),
        "semi_labels: must have shape (4,)": lambda: mad_loss(x, c, y[:2]),
        "eta: must be a finite number above 0, got 0": lambda: mad_loss(x, c, y, eta=0),
        "eps: must be a finite number above 0, got -1": lambda: mad_loss(x, c, y, eps=-1),
        "reduction: got 'max'": lambda: MADLoss(c, reduction="max"),
        "center: must have shape (D,)": lambda: DeepSADLoss(c),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError) as caught:
            call()
        assert message in str(caught.value)
