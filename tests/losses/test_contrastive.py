"""Contrastive losses and their gradients against float64 formulas, and what they promise."""

import itertools
import math

import pytest
import torch
from torch import nn

from selftaught.losses import (
    InfoNCELoss,
    NTXentLoss,
    SupConLoss,
    info_nce_loss,
    ntxent_loss,
    supcon_loss,
)
from tests.losses import formulas
from tests.losses.formulas import gradients, relative_error, views

pytestmark = pytest.mark.usefixtures("every_backend")

# images, width, noise between views, temperature, (lowest, highest) mean NT-Xent loss
REGIMES = {
    "loss 5": (90, 128, 3.0, 0.5, (4.5, 5.5)),
    "loss 0.5": (33, 100, 0.5, 0.19, (0.35, 0.9)),
    "loss 0.01": (64, 128, 0.25, 0.1, (0.002, 0.05)),
    "loss 1e-6": (20, 128, 0.1, 0.05, (1e-9, 1e-5)),
    "width 16": (31, 16, 0.5, 0.2, (0.0, 9.0)),
    "width 17": (7, 17, 0.5, 0.07, (0.0, 9.0)),
    "width 200": (23, 200, 0.6, 0.1, (0.0, 9.0)),
    "width 512": (12, 512, 0.6, 0.1, (0.0, 9.0)),
    "width 768": (17, 768, 0.6, 0.1, (0.0, 9.0)),
    "width 1024": (9, 1024, 0.6, 0.1, (0.0, 9.0)),
    "cold": (9, 17, 1.0, 0.005, (0.0, 200.0)),
    "hot": (9, 17, 1.0, 10.0, (2.0, 4.0)),
    "two images": (2, 3, 1.0, 0.5, (0.0, 9.0)),
}
LOSSES = ("ntxent", "supcon", "info_nce", "clip", "queue")


def labels_for(images: int) -> torch.Tensor:
    labels = torch.arange(images) % 4
    labels[::3] = -1
    return labels


def bank(loss, z1, z2):
    """Negatives; alone they must be hard, or the plain formula has no digits of the loss."""
    if loss != "queue":
        return z1[:2].roll(1, 1)
    half = z1.shape[1] // 2
    return torch.cat([z2[:4, :half], z1.roll(1, 0)[:4, half:]], 1)


def ours(loss: str, z1, z2, tau, **settings):
    if loss == "ntxent":
        return ntxent_loss(z1, z2, tau, reduction="none", **settings)
    if loss == "supcon":
        return supcon_loss(z1, z2, labels_for(len(z1)), tau, reduction="none", **settings)
    if loss == "clip":
        return info_nce_loss(z1, z2, temperature=tau, symmetric=True, reduction="none", **settings)
    settings |= {"negatives": bank(loss, z1, z2), "temperature": tau, "reduction": "none"}
    return info_nce_loss(z1, z2, in_batch=loss != "queue", **settings)


def theirs(loss: str, z1, z2, tau, **settings):
    if loss == "ntxent":
        return formulas.ntxent(z1, z2, tau, **settings)
    if loss == "supcon":
        return formulas.supcon(z1, z2, labels_for(len(z1)), tau, **settings)
    negatives = None if loss == "clip" else bank(loss, z1, z2)
    if loss == "queue":
        return formulas.queue(z1, z2, negatives, tau, **settings)
    return formulas.info_nce(z1, z2, negatives, tau, symmetric=loss == "clip", **settings)


def evaluate(function, loss, z1, z2, tau, dtype, **settings):
    """Rows' losses, then gradients by both views and the temperature."""
    leaves = [z1.to(dtype).requires_grad_(), z2.to(dtype).requires_grad_()]
    scale = torch.tensor(tau, dtype=torch.promote_types(dtype, torch.float32), requires_grad=True)
    rows = function(loss, *leaves, scale, **settings)
    return [rows, *gradients(rows, [*leaves, scale])]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("regime", REGIMES)
def test_float64_equals_the_formula(loss, regime):
    images, width, noise, tau, (lowest, highest) = REGIMES[regime]
    z1, z2 = views(images, width, noise)
    if loss == "ntxent":
        assert lowest <= float(formulas.ntxent(z1, z2, tau).mean()) <= highest
    truth = evaluate(theirs, loss, z1, z2, tau, torch.float64)
    for value, expected in zip(
        evaluate(ours, loss, z1, z2, tau, torch.float64), truth, strict=True
    ):
        # The naive formula cancels at tiny losses: 1e-6 of 1 keeps ten digits.
        assert relative_error(value, expected) < (1e-9 if regime != "loss 1e-6" else 1e-7)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("regime", REGIMES)
def test_float32_error_is_at_most_twice_eagers(loss, regime):
    images, width, noise, tau, _ = REGIMES[regime]
    z1, z2 = (z.float().double() for z in views(images, width, noise))
    tau = float(torch.tensor(tau))
    truth = evaluate(theirs, loss, z1, z2, tau, torch.float64)
    eager = evaluate(theirs, loss, z1, z2, tau, torch.float32)
    fused = evaluate(ours, loss, z1, z2, tau, torch.float32)
    for value, plain, expected in zip(fused, eager, truth, strict=True):
        assert value.dtype == torch.float32
        allowed = 2 * relative_error(plain, expected) + 1e-6 / min(1.0, tau)
        assert relative_error(value, expected) < allowed


def test_small_losses_keep_their_digits_where_eager_loses_them():
    z1, z2 = (z.float().double() for z in views(40, 128, 0.1))
    truth = evaluate(theirs, "ntxent", z1, z2, 0.0625, torch.float64)
    eager = evaluate(theirs, "ntxent", z1, z2, 0.0625, torch.float32)
    fused = evaluate(ours, "ntxent", z1, z2, 0.0625, torch.float32)
    assert float(truth[0].detach().mean()) < 1e-4
    for value, plain, expected in zip(fused, eager, truth, strict=True):
        assert relative_error(value, expected) < 2e-5
        assert relative_error(value, expected) < relative_error(plain, expected) / 5


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_half_precision_computes_in_float32(loss, dtype, precision, every_backend):
    z1, z2 = (z.to(dtype).double() for z in views(19, 17, 0.4))
    truth = evaluate(theirs, loss, z1, z2, 0.25, torch.float64)
    values = evaluate(ours, loss, z1, z2, 0.25, dtype, precision=precision)
    assert values[0].dtype == torch.float32
    assert values[1].dtype == dtype
    rounded = every_backend == "triton" and precision == "auto"  # products of fp16 rows
    assert relative_error(values[0], truth[0]) < (2.0**-10 if rounded else 1e-5)
    allowed = [torch.finfo(dtype).eps] * len(values)
    if rounded:
        # The gradient by temperature is a difference of like terms, which exact arithmetic on
        # rounded rows has wrong by more: 1.6e-3 with supcon, PyTorch's own in float16 by 1.1e-2.
        units = [nn.functional.normalize(z, dim=1).half().double() for z in (z1, z2)]
        there = evaluate(theirs, loss, *units, 0.25, torch.float64)
        allowed[-1] += relative_error(there[-1], truth[-1])
    for value, expected, most in zip(values[1:], truth[1:], allowed[1:], strict=True):
        assert relative_error(value, expected) < most


@pytest.mark.parametrize("loss", LOSSES)
def test_unnormalised(loss):
    z1, z2 = views(11, 16, 0.4)
    truth = evaluate(theirs, loss, z1, z2, 2.0, torch.float64, normalize=False)
    values = evaluate(ours, loss, z1, z2, 2.0, torch.float64, normalize=False)
    for value, expected in zip(values, truth, strict=True):
        assert relative_error(value, expected) < 1e-9


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("tau", [0.005, 0.5, 10.0])
@pytest.mark.parametrize("case", ["duplicates", "all equal", "zero rows", "opposite"])
def test_degenerate_embeddings(loss, tau, case):
    z1, z2 = views(6, 16, 0.5)
    if case == "duplicates":
        z1[1:3], z2[1:3] = z1[0], z1[0]
    elif case == "all equal":
        z1[:], z2[:] = z1[0], z1[0]
    elif case == "zero rows":
        z1[1], z2[4] = 0, 0
    else:
        z2 = -z1
    truth = evaluate(theirs, loss, z1, z2, tau, torch.float64)
    # Rounding of a similarity reaches losses and gradients divided by the temperature.
    sizes = [1 / tau, 1 / tau, 1 / tau, 1 / tau**2]
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 3e-6)):
        values = evaluate(ours, loss, z1, z2, tau, dtype)
        for value, expected, size in zip(values, truth, sizes, strict=True):
            size = max(float(expected.abs().max()), size)
            error = float((value.double() - expected).abs().max()) / size
            assert error < tolerance / min(1, tau)


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e30])
def test_length_is_divided_out_at_any_scale(size):
    z1, z2 = views(5, 16, 0.5)
    expected = evaluate(ours, "ntxent", z1, z2, 0.5, torch.float32)
    scaled = evaluate(ours, "ntxent", z1 * size, z2 * size, 0.5, torch.float32)
    assert relative_error(scaled[0], expected[0]) < 1e-5
    assert relative_error(scaled[1].double() * size, expected[1]) < 1e-4


def test_zero_row_gets_no_gradient():
    z1, z2 = views(4, 8, 0.5)
    z1[2] = 0
    _, gradient, _, _ = evaluate(ours, "ntxent", z1, z2, 0.5, torch.float32)
    assert gradient[2].abs().max() == 0
    assert gradient[1].abs().max() > 0


def test_one_image_has_nothing_to_learn():
    z1, z2 = views(1, 8, 0.5)
    values = [evaluate(ours, loss, z1, z2, 0.1, torch.float32) for loss in ("ntxent", "clip")]
    values.append(evaluate(ours, "supcon", z1, z2, 0.1, torch.float32))
    for value in (tensor for row in values for tensor in row):
        assert torch.equal(value, torch.zeros_like(value))


def test_supcon_without_classes_is_ntxent():
    z1, z2 = views(13, 17, 0.3)
    none = torch.full((13,), -1)
    assert torch.equal(supcon_loss(z1, z2, none, 0.1) > 0, torch.tensor(True))
    torch.testing.assert_close(
        supcon_loss(z1, z2, none, 0.1, reduction="none"),
        ntxent_loss(z1, z2, 0.1, reduction="none"),
        rtol=1e-11,
        atol=0,
    )


@pytest.mark.parametrize("loss", LOSSES[:2])
def test_order_of_images_and_views(loss):
    z1, z2 = views(8, 16, 0.5)
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    labels = labels_for(8)
    if loss == "supcon":
        rows = supcon_loss(z1, z2, labels, reduction="none")
        moved = supcon_loss(z1[order], z2[order], labels[order], reduction="none")
    else:
        rows = ntxent_loss(z1, z2, reduction="none")
        moved = ntxent_loss(z1[order], z2[order], reduction="none")
    torch.testing.assert_close(moved, torch.cat([rows[:8][order], rows[8:][order]]))
    swapped = ours(loss, z2, z1, 0.5)
    torch.testing.assert_close(swapped, torch.cat([rows[8:], rows[:8]]))


@pytest.mark.parametrize("loss", ["ntxent", "supcon", "clip"])
def test_rotation_changes_nothing_and_gradients_are_tangent(loss):
    z1, z2 = views(8, 16, 0.5)
    rotation, _ = torch.linalg.qr(views(16, 16, 0.0)[0])
    values = evaluate(ours, loss, z1, z2, 0.3, torch.float64)
    rotated = evaluate(ours, loss, z1 @ rotation, z2 @ rotation, 0.3, torch.float64)
    torch.testing.assert_close(rotated[0], values[0])
    torch.testing.assert_close(rotated[1], values[1] @ rotation)
    assert (values[1] * z1).sum(1).abs().max() < 1e-12


def test_reductions():
    z1, z2 = views(5, 8, 0.5)
    rows = ntxent_loss(z1, z2, reduction="none")
    assert rows.shape == (10,)
    torch.testing.assert_close(ntxent_loss(z1, z2, reduction="sum"), rows.sum())
    torch.testing.assert_close(ntxent_loss(z1, z2), rows.mean())
    assert info_nce_loss(z1, z2, reduction="none").shape == (5,)
    assert info_nce_loss(z1, z2, symmetric=True, reduction="none").shape == (10,)


def test_temperature_may_be_a_number_or_a_tensor():
    z1, z2 = views(5, 8, 0.5)
    number = ntxent_loss(z1, z2, 0.2)
    assert torch.equal(number, ntxent_loss(z1, z2, torch.tensor(0.2, dtype=torch.float64)))
    assert math.isclose(number, ntxent_loss(z1, z2, torch.tensor(0.2)), rel_tol=1e-6)
    # FSDP shards no 0-d parameters.
    one = nn.Parameter(torch.tensor([0.2], dtype=torch.float64))
    loss = NTXentLoss(one)(z1, z2)
    loss.backward()
    assert torch.equal(loss, number) and one.grad.shape == (1,) and one.grad != 0


def test_mixed_dtypes_are_promoted():
    z1, z2 = (z.bfloat16() for z in views(5, 8, 0.5))
    loss = ntxent_loss(z1, z2.float())
    torch.testing.assert_close(loss, ntxent_loss(z1.float(), z2.float()))


def test_modules_are_the_functions():
    z1, z2 = views(5, 8, 0.5)
    labels = labels_for(5)
    scale = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    module = NTXentLoss(scale, reduction="sum")
    assert [*module.parameters()] == [scale]
    assert torch.equal(module(z1, z2), ntxent_loss(z1, z2, scale, reduction="sum"))
    assert torch.equal(SupConLoss(0.2)(z1, z2, labels), supcon_loss(z1, z2, labels, 0.2))
    assert torch.equal(InfoNCELoss(symmetric=True)(z1, z2), info_nce_loss(z1, z2, symmetric=True))
    assert torch.equal(InfoNCELoss()(z1, z2, z1), info_nce_loss(z1, z2, negatives=z1))
    assert "temperature=0.3" in repr(module)


@pytest.mark.parametrize("loss", LOSSES)
def test_autocast_changes_nothing(loss):
    z1, z2 = (z.float() for z in views(9, 16, 0.5))
    plain = evaluate(ours, loss, z1, z2, 0.1, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = evaluate(ours, loss, z1, z2, 0.1, torch.float32)
    for value, expected in zip(mixed, plain, strict=True):
        assert torch.equal(value, expected)


def test_wrong_arguments_are_named():
    z = torch.randn(4, 8)
    y = torch.zeros(4, dtype=torch.int64)
    bad = z.clone()
    bad[2, 3] = float("nan")
    infinite = z.clone()
    infinite[1, 0] = float("inf")
    calls = {
        "z1: must have at least one row": lambda: ntxent_loss(z[:0], z[:0]),
        "z2: width D is 7, but z1 has D = 8": lambda: ntxent_loss(z, z[:, :7]),
        "z2: has 3 rows, but z1 has 4": lambda: ntxent_loss(z, z[:3]),
        "z1: must hold floating-point numbers": lambda: ntxent_loss(z.long(), z),
        "z1: must have shape": lambda: ntxent_loss(z[0], z[0]),
        "z1: must be a tensor, got list": lambda: ntxent_loss([1.0], z),
        "z2: must be finite, but row 2": lambda: ntxent_loss(z, bad),
        "z1: must be finite, but row 1": lambda: ntxent_loss(infinite, z),
        "key: must be finite, but row 2": lambda: info_nce_loss(z, bad),
        "negatives: width D": lambda: info_nce_loss(z, z, negatives=z[:, :3]),
        "negatives: must have at least one row": lambda: info_nce_loss(z, z, negatives=z[:0]),
        "in_batch: False needs `negatives`": lambda: info_nce_loss(z, z, in_batch=False),
        "exchange: got 'star', allowed are gather, ring": lambda: ntxent_loss(
            z, z, exchange="star"
        ),
        "negatives: must be None": lambda: info_nce_loss(z, z, negatives=z, symmetric=True),
        "temperature: must be a finite number above 0, got 0": lambda: ntxent_loss(z, z, 0),
        "temperature: must be a finite number above 0, got -1.0": lambda: NTXentLoss(-1.0),
        "got nan": lambda: ntxent_loss(z, z, float("nan")),
        "above 0, got -0.5": lambda: ntxent_loss(z, z, torch.tensor(-0.5)),
        "temperature: a tensor must be 0-d": lambda: ntxent_loss(z, z, torch.ones(2)),
        "reduction: got 'avg', allowed are mean": lambda: ntxent_loss(z, z, reduction="avg"),
        "backend: got 'gpu', allowed are auto": lambda: ntxent_loss(z, z, backend="gpu"),
        "precision: got 'tf32', allowed": lambda: ntxent_loss(z, z, precision="tf32"),
        "labels: must be a tensor of integers": lambda: supcon_loss(z, z, y.float()),
        "labels: must have shape (4,)": lambda: supcon_loss(z, z, y[:3]),
        "labels: got -2, allowed are -1 or above": lambda: supcon_loss(z, z, y - 2),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError) as caught:
            call()
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_large_finite_entries_are_not_mistaken_for_infinities():
    z = torch.full((4, 8), 3e38)
    assert torch.isfinite(ntxent_loss(z, z))
    half = torch.full((4, 8), 65504.0, dtype=torch.float16)
    assert torch.isfinite(ntxent_loss(half, half))


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_row_of_which_nothing_is_finite_is_named(loss, value):
    """It is looked for where the loss is not finite, which has to show it then."""
    for place, normalize, images in itertools.product((0, 1), (True, False), (1, 5)):
        inputs = [z.float() for z in views(images, 16, 0.5)]
        inputs[place][-1] = float(value)
        # The bank of the tests is made of the views, and so names a row of its own.
        row = images - 1 if loss != "queue" else r"\d"
        with pytest.raises(ValueError, match=f"row {row} holds"):
            ours(loss, *inputs, 0.2, normalize=normalize)
        for reduction in ("mean", "sum") if loss == "ntxent" else ():
            with pytest.raises(ValueError, match=f"row {images - 1} holds"):
                ntxent_loss(*inputs, 0.2, normalize=normalize, reduction=reduction)


@pytest.mark.parametrize("images", [1, 5])
@pytest.mark.parametrize("loss", LOSSES)
def test_unchecked_values_give_a_nan_loss(loss, images):
    z1, z2 = (z.float().requires_grad_() for z in views(images, 16, 0.5))
    tau = torch.tensor(0.2, requires_grad=True)
    for place, value in ((0, "nan"), (1, "inf"), (2, "nan")):
        inputs = [t.detach().clone().requires_grad_() for t in (z1, z2, tau)]
        with torch.no_grad():
            inputs[place].view(-1)[-1] = float(value)
        for normalize in (True, False):
            rows = ours(loss, *inputs, check_values=False, normalize=normalize)
            assert rows.mean().isnan()
            rows.mean().backward()
        with pytest.raises(ValueError, match="finite"):
            ours(loss, *inputs)
