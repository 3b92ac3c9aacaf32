"""Cases of test_triton_tables.py: the Triton passes against float64 sums written out.

Run where TRITON_INTERPRET=1, or on a GPU.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

import triton

from selftaught.kernels.reference import contrastive as reference
from selftaught.kernels.tiles import Classes, Excluded, Side
from selftaught.kernels.triton import BACKEND, log_sums, tuning
from selftaught.kernels.triton.tuning import Shape
from tests.kernels.tiles_truth import logits_of, weighted

INTERPRETED = triton.knobs.runtime.interpret
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs TRITON_INTERPRET=1 or a GPU", allow_module_level=True)

DEVICE = "cpu" if INTERPRETED else "cuda"
TILES = BACKEND.tiles
# Relative to the largest: unit of the operands, and fp32-faithful.
UNITS = {"auto": 2.0**-23, "fp16": 2.0**-11, "bf16": 2.0**-8}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Many tiles in few rows: blocks of 32 by 16, few partial sums at a time."""
    if INTERPRETED:

        def shape(kernel, generation, width, split):
            held = width <= 256
            return Shape(32, 16, width if held else 256, width if held else 512, 4, 2)

        monkeypatch.setattr(tuning, "table_shape", shape)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def number(value):
    return torch.tensor(value, device=DEVICE)


def side(logits, seed, share=False, size=1.0):
    """Something like the losses of rows of logits: weights of any sign, a larger denominator."""
    count = len(logits)
    weight = normal(count, seed=seed) * size
    total = torch.logaddexp(logits.logsumexp(1), normal(count, seed=seed + 1).double() - 2)
    return Side(
        weight=weight,
        total=total.float(),
        positive=normal(count, seed=seed + 2),
        share=weight / 3 if share else None,
    )


def close(found, expected, bound):
    assert found.dtype == torch.float32 and found.shape == expected.shape
    assert torch.equal(found.isinf(), expected.isinf()) and not found.isnan().any()
    finite = ~expected.isinf()
    error = (found - expected)[finite].abs().amax() if finite.any() else 0.0
    assert error <= bound, f"{error} > {bound}"


def log_bound(tau, precision, reach=1.0):
    """What rounded operands and a rounded logit may move a log-sum by."""
    return 4 * UNITS[precision] * (reach / tau + 1)


RECTANGLES = [
    (70, 37, Excluded(0)),
    (33, 70, Excluded(5)),
    (40, 70, Excluded(-7)),
    (40, 50, Excluded(7, 20)),
    (1, 3, Excluded(1)),
    (3, 1, None),
    (20, 20, Excluded(100)),
]


@pytest.mark.parametrize("width", [16, 17, 100, 128, 200, 512, 768, 1024])
def test_widths(width):
    z, tau = normal(34, width), number(0.1)
    x = TILES.prepare(z, True, "auto")
    unit = F.normalize(z.double())
    close(x.unit, unit, 2.0**-23)
    close(x.inverse, 1 / z.double().norm(dim=1, keepdim=True), 2.0**-23)
    excluded = Excluded(0, 17)
    found, none = TILES.log_sums(x, x, tau, excluded)
    assert none is None
    logits, y = logits_of(z, z, tau, excluded)
    close(found, logits.logsumexp(1), log_bound(0.1, "auto"))
    row = side(logits, 1)
    sums_found, slopes = TILES.weighted_sums(x, x, tau, excluded, row=row, column=row, slope=True)
    expected, expected_slopes = weighted(logits, y, row, row)
    close(sums_found, expected, 2e-5 * expected.abs().amax())
    close(slopes, expected_slopes, 2e-5 * expected_slopes.abs().amax())


@pytest.mark.parametrize("count", [2, 16, 34, 62, 70])
@pytest.mark.parametrize("tau", [0.005, 0.0125, 0.07, 10.0])
def test_symmetric(count, tau):
    z = normal(count, 16, seed=count)
    z[-1] = z[0]  # the largest logit there is
    x, temperature = TILES.prepare(z, True, "auto"), number(tau)
    for excluded in (Excluded(0), Excluded(0, count // 2), None):
        logits, _ = logits_of(z, z, temperature, excluded)
        found, columns = TILES.log_sums(x, x, temperature, excluded, columns=True)
        close(found, logits.logsumexp(1), log_bound(tau, "auto"))
        assert torch.equal(found, columns)


def test_partial_sums_in_rounds(monkeypatch):
    monkeypatch.setattr(log_sums, "_slots", lambda pair: 1)
    monkeypatch.setattr(tuning, "processors", lambda device: 2)
    z, y, tau = normal(150, 16), normal(70, 16, seed=1), number(0.1)
    x, other = TILES.prepare(z, True, "auto"), TILES.prepare(y, True, "auto")
    logits, _ = logits_of(z, z, tau, Excluded(0, 75))
    close(TILES.log_sums(x, x, tau, Excluded(0, 75))[0], logits.logsumexp(1), 1e-5)
    logits, _ = logits_of(z, y, tau, Excluded(2))
    rows, columns = TILES.log_sums(x, other, tau, Excluded(2), columns=True)
    close(rows, logits.logsumexp(1), 1e-5)
    close(columns, logits.logsumexp(0), 1e-5)


@pytest.mark.parametrize("case", RECTANGLES)
@pytest.mark.parametrize("tau", [0.005, 0.2])
def test_rectangles(case, tau):
    count, many, excluded = case
    z, y, temperature = normal(count, 24), normal(many, 24, seed=1) * 3, number(tau)
    x, other = TILES.prepare(z, True, "auto"), TILES.prepare(y, True, "auto")
    logits, unit = logits_of(z, y, temperature, excluded)
    rows, columns = TILES.log_sums(x, other, temperature, excluded, columns=True)
    close(rows, logits.logsumexp(1), log_bound(tau, "auto"))
    close(columns, logits.logsumexp(0), log_bound(tau, "auto"))
    alone, _ = TILES.log_sums(x, other, temperature, excluded)
    close(alone, logits.logsumexp(1), log_bound(tau, "auto"))
    bound = 1e-5 if tau > 0.1 else 2e-4
    given = Classes(torch.arange(count, device=DEVICE) % 3, torch.arange(many, device=DEVICE) % 4)
    row, column = side(logits, 2, True), side(logits.T, 5, True)
    for rows, columns, classes, slope in (
        (row, column, None, True),
        (row, None, None, False),
        (None, column, None, True),
        (row, column, given, True),
        (row, None, given, False),
        (None, column, given, False),
    ):
        found, slopes = TILES.weighted_sums(
            x, other, temperature, excluded, row=rows, column=columns, classes=classes, slope=slope
        )
        expected, expected_slopes = weighted(logits, unit, rows, columns, classes)
        close(found, expected, bound * (expected.abs().amax() + 1e-3))
        if slope and rows is not None:
            close(slopes, expected_slopes, bound * (expected_slopes.abs().amax() + 1e-3))
        else:
            assert slopes is None


def test_parts_are_views():
    z, tau = normal(70, 16), number(0.1)
    x = TILES.prepare(z, True, "auto")
    part = x.part(13, 40)
    logits, y = logits_of(z[13:53], z, tau, Excluded(13))
    close(TILES.log_sums(part, x, tau, Excluded(13))[0], logits.logsumexp(1), 1e-5)
    row, column = side(logits, 1), side(logits.T, 4)
    expected, _ = weighted(logits, y, row, column)
    found, _ = TILES.weighted_sums(part, x, tau, Excluded(13), row=row, column=column)
    close(found, expected, 1e-5 * expected.abs().amax())


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1.0, 65536.0])
def test_weights_of_any_size(size):
    """Neither loss scaling nor a mean over many rows costs digits."""
    z, tau = normal(40, 16), number(0.5)
    x = TILES.prepare(z, True, "auto")
    logits, y = logits_of(z, z, tau, Excluded(0))
    row, column = side(logits, 1, size=size), side(logits, 4, size=size)
    expected, _ = weighted(logits, y, row, column)
    found, _ = TILES.weighted_sums(x, x, tau, Excluded(0), row=row, column=column)
    close(found, expected, 1e-6 * expected.abs().amax())
    nothing = row._replace(weight=torch.zeros_like(row.weight))
    zero, slopes = TILES.weighted_sums(x, x, tau, Excluded(0), row=nothing, column=None, slope=True)
    assert not zero.any() and not slopes.any()
    apart = row._replace(weight=row.weight * (10.0 ** -torch.arange(40, device=DEVICE).div(4)))
    expected, _ = weighted(logits, y, apart, None)
    found, _ = TILES.weighted_sums(x, x, tau, Excluded(0), row=apart, column=None)
    if size == 1.0:  # every row keeps its own digits
        close(found / apart.weight[:, None], expected / apart.weight[:, None], 1e-5)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_precision(precision, dtype):
    z, tau = normal(40, 32).to(dtype), number(0.2)
    x = TILES.prepare(z, True, precision)
    assert len(x.operands) == 2 and x.unit.dtype == torch.float32
    logits, y = logits_of(z, z, tau, Excluded(0, 20))
    found, _ = TILES.log_sums(x, x, tau, Excluded(0, 20))
    close(found, logits.logsumexp(1), log_bound(0.2, precision))
    row = side(logits, 1, size=1e-6)
    expected, slopes = weighted(logits, y, row, row)
    sums_found, slopes_found = TILES.weighted_sums(
        x, x, tau, Excluded(0, 20), row=row, column=row, slope=True
    )
    bound = 8 * UNITS[precision]
    close(sums_found, expected, bound * expected.abs().amax())
    close(slopes_found, slopes, bound * slopes.abs().amax())


def test_tiers():
    z = normal(4, 16)
    half = {"auto": (torch.float16, 3), "bf16": (torch.bfloat16, 2), "fp16": (torch.float16, 2)}
    for precision, (dtype, parts) in half.items():
        operands = TILES.prepare(z, True, precision).operands
        assert operands[0].dtype == dtype and len(operands) == parts
    assert len(TILES.prepare(z.half(), True, "auto").operands) == 2
    assert len(TILES.prepare(z.half(), True, "fp32").operands) == 3
    with pytest.raises(ValueError, match="precision"):
        x, y = TILES.prepare(z, True, "auto"), TILES.prepare(z, True, "bf16")
        TILES.log_sums(x, y, number(1.0), None)


@pytest.mark.parametrize("size", [1e-12, 1e-3, 1.0, 30.0, 1e4])
def test_rows_not_normalised(size):
    z, y = normal(40, 20) * size, normal(33, 20, seed=1) * size
    z[3] *= 1e-3
    tau = number(float(max(size * size, 1e-20)))
    x, other = TILES.prepare(z, False, "auto"), TILES.prepare(y, False, "auto")
    assert x.inverse is None and torch.equal(x.unit, z)
    logits, columns = logits_of(z, y, tau, None, normalize=False)
    reach = logits.abs().amax()
    found, _ = TILES.log_sums(x, other, tau, None)
    close(found, logits.logsumexp(1), 2.0**-21 * (reach + 1))
    row = side(logits, 1)
    expected, _ = weighted(logits, columns, row, None)
    sums_found, _ = TILES.weighted_sums(x, other, tau, None, row=row, column=None)
    close(sums_found, expected, 2.0**-20 * (reach + 1) * expected.abs().amax())


def test_zero_tiny_huge_and_equal_rows():
    z = normal(9, 16)
    z[0] = 0
    z[1] = 1e-39
    z[2] *= 1e-37
    z[3] *= 1e37
    z[5] = z[4]
    x = TILES.prepare(z, True, "auto")
    assert not x.unit[:2].any() and not x.inverse[:2].any()
    expected = F.normalize(z.double(), eps=1e-300)
    expected[:2] = 0
    close(x.unit, expected, 2.0**-23)
    for tau in (0.005, 1.0):
        logits = expected @ expected.T / number(tau).double()
        found, _ = TILES.log_sums(x, x, number(tau), None)
        close(found, logits.logsumexp(1), log_bound(tau, "auto"))
    same = TILES.prepare(torch.ones(70, 16, device=DEVICE), True, "auto")
    found, _ = TILES.log_sums(same, same, number(0.01), Excluded(0))
    close(found, found.new_full((70,), 100.0).double() + torch.tensor(69.0).log(), 3e-5)


def test_nothing_left():
    x = TILES.prepare(normal(2, 16), True, "auto")
    for tau in (0.001, 1.0):
        found, _ = TILES.log_sums(x, x, number(tau), Excluded(0, 1))
        assert torch.equal(found, torch.full((2,), float("-inf"), device=DEVICE))
    none = x.part(0, 0)
    rows, columns = TILES.log_sums(x, none, number(1.0), None, columns=True)
    assert rows.isinf().all() and columns.shape == (0,)
    row = Side(torch.ones(2, device=DEVICE), torch.zeros(2, device=DEVICE))
    assert not TILES.weighted_sums(x, none, number(1.0), None, row=row, column=None)[0].any()
    assert TILES.prepare(normal(0, 16), True, "auto").unit.shape == (0, 16)


def test_dots_and_finish():
    z, y, tau = normal(37, 100), normal(37, 100, seed=1), number(0.3)
    x, other = TILES.prepare(z, True, "auto"), TILES.prepare(y, True, "auto")
    unit, partner = F.normalize(z.double()), F.normalize(y.double())
    close(TILES.dots(x, other), (unit * partner).sum(1), 2.0**-22)
    total, coefficient = normal(37, 100, seed=2), normal(37, seed=3)
    plain = (total.double() + coefficient.double()[:, None] * partner) / tau.double()
    along = (plain * unit).sum(1, keepdim=True)
    expected = (plain - along * unit) / z.double().norm(dim=1, keepdim=True)
    close(TILES.finish(total, x, tau, other, coefficient), expected, 1e-6)
    raw = TILES.prepare(z, False, "auto")
    close(TILES.finish(total.T.contiguous().T, raw, tau), total.double() / tau.double(), 1e-5)


def test_not_contiguous():
    wide = normal(20, 40)
    for z in (wide[:, 3:20], wide.T[3:20], wide[::2]):
        x = TILES.prepare(z, True, "auto")
        close(x.unit, F.normalize(z.double()), 2.0**-23)
        raw = TILES.prepare(z, False, "auto")
        assert torch.equal(raw.unit, z)


@pytest.mark.parametrize("tau", [0.005, 0.1])
def test_equal_bits(tau):
    z, temperature = normal(70, 16), number(tau)

    def everything():
        x = TILES.prepare(z, True, "auto")
        total, _ = TILES.log_sums(x, x, temperature, Excluded(0, 35))
        row = Side(torch.ones_like(total), total, torch.zeros_like(total))
        sums_found, slopes = TILES.weighted_sums(
            x, x, temperature, Excluded(0, 35), row=row, column=row, slope=True
        )
        return total, sums_found, slopes

    for one, two in zip(everything(), everything(), strict=True):
        assert torch.equal(one, two)


def gradients(module, args, weight):
    """Losses and gradients by z and temperature."""
    loss = module.ntxent(*args)
    return [
        loss,
        *module.ntxent_backward(weight.to(loss.dtype), *args, loss, [True, True]),
    ]


@pytest.mark.parametrize("noise, tau", [(5.0, 0.5), (0.6, 0.1), (0.2, 0.07), (0.2, 0.01)])
def test_as_exact_as_eager(noise, tau):
    """Of losses from about 4 to 1e-22: errors at most twice those of eager float32.

    Beyond that only what the passes are given is rounded: `Side.total` is float32.
    """
    z1 = normal(32, 64)
    z = torch.cat([z1, z1 + noise * normal(32, 64, seed=1)])
    weight = torch.full((64,), 1 / 64, device=DEVICE)
    exact = gradients(
        reference,
        (z.double(), number(tau).double(), 0.0, True, "auto"),
        weight,
    )
    args = (z, number(tau), 0.0, True, "auto")
    found, eager = gradients(BACKEND.losses, args, weight), gradients(reference, args, weight)
    for ours, theirs, true in zip(found, eager, exact, strict=True):
        scale = true.abs().amax()
        error = (ours - true).norm()
        floor = (2.0**-22 + 2.0**-24 / tau) * scale * true.numel() ** 0.5
        assert error <= 2 * (theirs - true).norm() + floor


@pytest.mark.parametrize("normalize, tau", itertools.product([True, False], [0.006, 0.1, 2.0]))
def test_losses_against_reference(normalize, tau):
    """SupCon and InfoNCE through `Contrastive`."""
    z, key, bank = normal(22, 24), normal(22, 24, seed=1), normal(9, 24, seed=2)
    if not normalize:
        z, key, bank = z / 5, key / 5, bank / 5
    classes = torch.arange(22, device=DEVICE) % 5
    classes[11:] = classes[:11]
    classes[[3, 14]] = 77
    for op, args in (
        ("supcon", (z, classes, None, tau, False, normalize, "auto")),
        ("supcon", (z, classes, None, tau, True, normalize, "auto")),
        ("info_nce", (z, key, None, None, tau, True, True, normalize, "auto")),
        ("info_nce", (z, key, bank, None, tau, False, True, normalize, "auto")),
        ("info_nce", (z, key, bank, None, tau, False, False, normalize, "auto")),
    ):
        needs = [True, False] if op == "supcon" else [True, True, args[2] is not None, False]
        double = tuple(
            a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args
        )
        loss, expected = getattr(BACKEND.losses, op)(*args), getattr(reference, op)(*double)
        close(loss, expected, 4e-7 / tau + 2e-6)
        grad = normal(len(loss), seed=4)
        found = getattr(BACKEND.losses, op + "_backward")(grad, *args, loss, needs)
        right = getattr(reference, op + "_backward")(grad.double(), *double, expected, needs)
        for one, other, need in zip(found, right, needs, strict=True):
            if need:
                close(one, other, (1e-6 / tau + 2e-6) * other.abs().amax())


def test_columns_in_parts(monkeypatch):
    monkeypatch.setattr(tuning, "visits_each", lambda *_: 2)  # of three: a ragged last part
    z, tau = normal(150, 16), number(0.1)
    x = TILES.prepare(z, True, "auto")
    logits, y = logits_of(z, z, tau, None)
    row = side(logits, 1)
    expected, _ = weighted(logits, y, row, None)
    close(TILES.weighted_sums(x, x, tau, None, row=row, column=None)[0], expected, 1e-5)
