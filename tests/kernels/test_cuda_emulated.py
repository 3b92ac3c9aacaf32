"""The CUDA kernels equal the formulas, thread by thread on a host, and on a GPU where there is one.

The emulation runs the kernels' own source: fragments, shuffles, barriers and asynchronous copies.
"""

import math

import pytest
import torch

from selftaught.kernels.contrastive import Contrastive
from selftaught.kernels.cuda import plan
from selftaught.kernels.reference import contrastive as reference
from selftaught.kernels.reference.tiles import EagerTiles
from selftaught.kernels.tiles import Classes, Embeddings, Excluded, Side
from tests.kernels.emulation import Machine
from tests.losses.formulas import relative_error, views

EAGER = EagerTiles()
# Rounding of one operand to halves, and of float32 arithmetic, as share of a similarity of 1.
OPERAND = {"fp16": 2.0**-11, "fp32": 2.0**-21}


def rows(count: int, width: int, seed: int) -> torch.Tensor:
    """Float32 embeddings of mixed lengths, some alike, one zero."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, width, generator=generator)
    z[count // 2 :] = 0.7 * z[count // 2 :] + 0.7 * z[: count - count // 2]
    z *= 10.0 ** torch.randint(-3, 4, (count, 1), generator=generator)
    z[count // 3] = z[0]
    if count > 4:
        z[4] = 0
    return z


def prepare(machine: Machine, z: torch.Tensor, precision: str, normalize: bool = True):
    """The machine's rows, and exact ones of float64."""
    here = machine.tiles.prepare(z.to(machine.device), normalize, precision)
    return here, EAGER.prepare(z.double(), normalize, precision)


def side(count: int, total: torch.Tensor, seed: int, device: torch.device):
    """A side with weights of both signs, as float32 on the device and as float64."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.rand(count, generator=generator, dtype=torch.float64) - 0.2
    whole = torch.logaddexp(total, total - 0.3)
    exact = Side(weight, whole, total - 0.1, weight / 3)
    return Side(*(part.float().to(device) for part in exact)), exact


def tolerance(precision: str, tau: float) -> float:
    """Allowed error of a logit."""
    return 4 * OPERAND[precision] / tau + 4e-6


def compare_passes(machine, z, w, tau, precision, excluded, normalize=True, column_too=True):
    """Both passes against the formulas in float64; `w` None: the columns are the rows."""
    x, exact_x = prepare(machine, z, precision, normalize)
    y, exact_y = (x, exact_x) if w is None else prepare(machine, w, precision, normalize)
    temperature = torch.tensor(tau, device=machine.device)
    exact_tau = torch.tensor(tau).double()
    found = machine.tiles.log_sums(x, y, temperature, excluded, columns=True)
    wanted = EAGER.log_sums(exact_x, exact_y, exact_tau, excluded, columns=True)
    length = exact_x.unit.norm(dim=1).max() * exact_y.unit.norm(dim=1).max()
    allowed = tolerance(precision, tau / float(length))
    for value, truth in zip(found, wanted, strict=True):
        torch.testing.assert_close(value.cpu().double(), truth, rtol=1e-6, atol=allowed)
    of_row, exact_row = side(len(exact_x.unit), wanted[0], 1, machine.device)
    of_column, exact_column = side(len(exact_y.unit), wanted[1], 2, machine.device)
    generator = torch.Generator().manual_seed(3)
    named = Classes(
        torch.randint(0, 4, (len(exact_x.unit),), generator=generator) * 2**40,
        torch.randint(0, 4, (len(exact_y.unit),), generator=generator) * 2**40,
    )
    here = Classes(*(part.to(machine.device) for part in named))
    for row, column, classes, slope in (
        (True, True, False, False),
        (False, True, False, False),
        (True, column_too, True, True),
    ):
        options = {"slope": slope}
        sums, slopes = machine.tiles.weighted_sums(
            x,
            y,
            temperature,
            excluded,
            row=of_row if row else None,
            column=of_column if column else None,
            classes=here if classes else None,
            **options,
        )
        truth, true_slopes = EAGER.weighted_sums(
            exact_x,
            exact_y,
            exact_tau,
            excluded,
            row=exact_row if row else None,
            column=exact_column if column else None,
            classes=named if classes else None,
            **options,
        )
        assert relative_error(sums.cpu(), truth) < allowed + 2 * OPERAND[precision]
        assert (slopes is None) == (true_slopes is None)
        if slopes is not None:
            scale = exact_row.weight.abs().max() * (1 + float(true_slopes.abs().max()))
            assert (slopes.cpu() - true_slopes).abs().max() < 2 * allowed * scale


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize(
    ("width", "tau"),
    [(16, 0.005), (17, 0.5), (64, 0.07), (100, 10.0), (128, 0.014), (200, 0.005), (256, 0.1)],
)
def test_symmetric_passes(machine, width, tau, precision):
    half = 69 if width <= 128 else 37
    compare_passes(machine, rows(2 * half, width, 0), None, tau, precision, Excluded(0, half))


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize(
    ("shape", "excluded"),
    [
        ((130, 71, 40), Excluded(-60, 65)),
        ((70, 200, 40), Excluded(129)),
        ((1, 1, 128), None),
        ((65, 33, 250), Excluded(0)),
    ],
)
@pytest.mark.parametrize("tau", [0.2, 0.008])
def test_passes_of_two_sets(machine, shape, excluded, tau, precision):
    many, others, width = shape
    z, w = rows(many, width, 0), rows(others, width, 1)
    compare_passes(machine, z, w, tau, precision, excluded, column_too=tau < 0.1)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_rows_as_they_are(machine, scale, precision):
    z = torch.randn(70, 24, generator=torch.Generator().manual_seed(0)) * scale
    compare_passes(machine, z, None, 3.0 * scale**2, precision, Excluded(0), normalize=False)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("tau", [0.05, 0.0153, 0.0147, 0.0115, 0.009, 0.001])
def test_ends_of_the_range(machine, tau, sign):
    """All logits are +1 / tau or all -1 / tau: no sum may over- or underflow on either path."""
    z = torch.zeros(70, 16, device=machine.device)
    z[:, 3] = 1.0
    x = machine.tiles.prepare(z, True, "fp32")
    y = machine.tiles.prepare(sign * z, True, "fp32")
    temperature = torch.tensor(tau, device=machine.device)
    own, other = machine.tiles.log_sums(x, y, temperature, None, columns=True)
    wanted = torch.full((70,), sign / tau + math.log(70), device=machine.device)
    torch.testing.assert_close(own, wanted, rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(other, wanted, rtol=1e-6, atol=2e-6)
    of = Side(torch.ones_like(own), wanted)
    sums, _ = machine.tiles.weighted_sums(x, y, temperature, None, row=of, column=of)
    torch.testing.assert_close(sums, 2 * sign * z, rtol=1e-6 / tau + 1e-5, atol=0)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("count", [1, 2, 3, 128, 129, 257, 400])
def test_every_pair_is_met_once(machine, count, precision, monkeypatch):
    """All logits equal: the sums count the pairs, whatever the cuts into launches and chunks."""
    z = torch.ones(count, 8)
    x = machine.tiles.prepare(z.to(machine.device), True, precision)
    tau = torch.tensor(1.0, device=machine.device)
    for span, parts in ((8, 8 << 20), (1, 0)):
        monkeypatch.setattr(plan, "LEAST_SPAN", span)
        monkeypatch.setattr(plan, "PARTS_BYTES", parts or 1)
        found, _ = machine.tiles.log_sums(x, x, tau, Excluded(0))
        wanted = torch.full((count,), math.log(count - 1) + 1 if count > 1 else -math.inf)
        torch.testing.assert_close(found.cpu(), wanted, rtol=1e-6, atol=5e-4)


def test_launches_change_little(machine, monkeypatch):
    """Cuts into launches and chunks only reorder sums."""
    z, w = rows(260, 32, 0), rows(140, 32, 1)
    x, _ = prepare(machine, z, "fp32")
    y, _ = prepare(machine, w, "fp32")
    tau = torch.tensor(0.1, device=machine.device)
    ones = torch.ones(260, device=machine.device)

    def results():
        one = machine.tiles.log_sums(x, x, tau, Excluded(0, 130))[0]
        two, three = machine.tiles.log_sums(x, y, tau, Excluded(0), columns=True)
        row = Side(ones, two, two)
        return (
            one,
            two,
            three,
            *machine.tiles.weighted_sums(x, y, tau, Excluded(0), row=row, column=None, slope=True),
        )

    before = results()
    monkeypatch.setattr(plan, "LEAST_SPAN", 1)
    monkeypatch.setattr(plan, "PARTS_BYTES", 1)
    monkeypatch.setattr(plan, "SUMS_BYTES", 1)
    for value, truth in zip(results(), before, strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("width", "precision"), [(64, "fp16"), (256, "fp16"), (256, "fp32")])
def test_no_order_of_threads_changes_a_bit(machine, width, precision):
    """A missing barrier or wait would show as a difference between the orders."""
    z = rows(140 if width <= 128 else 74, width, 0)
    tau = torch.tensor(0.1, device=machine.device)
    half = len(z) // 2
    results = []
    for seed in range(4):
        machine.seed(seed)
        x = machine.tiles.prepare(z.to(machine.device), True, precision)
        total, _ = machine.tiles.log_sums(x, x, tau, Excluded(0, half))
        of = Side(torch.ones_like(total), total, total)
        sums, _ = machine.tiles.weighted_sums(x, x, tau, Excluded(0, half), row=of, column=of)
        results.append((total, sums))
    for total, sums in results[1:]:
        assert torch.equal(total, results[0][0]) and torch.equal(sums, results[0][1])


def test_gradients_far_below_the_largest(machine):
    """A row of which almost nothing is left to say still has a gradient of the right size."""
    z = rows(64, 32, 0)
    x, exact = prepare(machine, z, "fp32")
    tau, exact_tau = torch.tensor(0.1, device=machine.device), torch.tensor(0.1).double()
    total, _ = EAGER.log_sums(exact, exact, exact_tau, Excluded(0, 32))
    whole = total + math.log(1e6)  # losses near 1e-6
    weight = torch.full_like(whole, 65536 / 64)
    truth_side = Side(weight, whole)
    here = Side(*(part.float().to(machine.device) for part in (weight, whole)))
    found, _ = machine.tiles.weighted_sums(x, x, tau, Excluded(0, 32), row=here, column=here)
    truth, _ = EAGER.weighted_sums(
        exact, exact, exact_tau, Excluded(0, 32), row=truth_side, column=truth_side
    )
    assert relative_error(found.cpu(), truth) < 1e-4


def test_nothing_to_sum(machine):
    x = machine.tiles.prepare(torch.ones(3, 5, device=machine.device), True, "auto")
    none = machine.tiles.prepare(torch.ones(0, 5, device=machine.device), True, "auto")
    tau = torch.tensor(1.0, device=machine.device)
    own, other = machine.tiles.log_sums(x, none, tau, None, columns=True)
    assert own.tolist() == [-math.inf] * 3 and other.shape == (0,)
    sums, slope = machine.tiles.weighted_sums(
        x, none, tau, None, row=Side(own, own, own), column=None, slope=True
    )
    assert not sums.any() and not slope.any()
    assert machine.tiles.finish(none.unit, none, tau).shape == (0, 5)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_bad_numbers_reach_the_result(machine, precision):
    z = rows(70, 20, 0)
    z[3, 5] = math.nan
    x = machine.tiles.prepare(z.to(machine.device), True, precision)
    tau = torch.tensor(0.1, device=machine.device)
    total, _ = machine.tiles.log_sums(x, x, tau, Excluded(0))
    assert total.isnan().all()


LOSSES = {
    "ntxent": lambda z1, z2, w, tau: ("ntxent", (torch.cat([z1, z2]), tau, 0.0, True, "fp32"), 2),
    "supcon": lambda z1, z2, w, tau: (
        "supcon",
        (torch.cat([z1, z2]), torch.arange(len(z1)).repeat(2) % 5, tau, 0.0, True, True, "fp32"),
        2,
    ),
    "info_nce": lambda z1, z2, w, tau: (
        "info_nce",
        (z1, z2, w, tau, 0.0, False, True, True, "fp32"),
        4,
    ),
    "clip": lambda z1, z2, w, tau: (
        "info_nce",
        (z1, z2, None, tau, 0.0, True, True, True, "fp32"),
        4,
    ),
}


@pytest.mark.parametrize(("tau", "noise"), [(0.3, 0.4), (0.006, 3.0)])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_as_good_as_eager_float32(machine, name, tau, noise):
    """Whole losses and gradients: the error against float64 is at most twice that of eager."""
    z1, z2 = views(37, 24, noise)
    w = views(11, 24, noise, seed=3)[0]

    def results(losses, dtype, device):
        tensors = [t.to(device, dtype) for t in (z1, z2, w, torch.tensor(tau))]
        op, arguments, many = LOSSES[name](*tensors)
        arguments = [a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments]
        loss = getattr(losses, op)(*arguments)
        backward = getattr(losses, f"{op}_backward")
        grad = torch.linspace(-0.5, 1.5, len(loss), dtype=dtype).to(device)
        return [loss, *backward(grad, *arguments, loss, [True] * many)]

    truth = results(reference, torch.float64, "cpu")
    eager = results(reference, torch.float32, "cpu")
    found = results(Contrastive(machine.tiles), torch.float32, machine.device)
    for value, other, exact in zip(found, eager, truth, strict=True):
        if exact.numel() and exact.norm() > 0:
            allowed = 2 * relative_error(other, exact) + 4e-6
            assert relative_error(value.cpu(), exact) < allowed


def test_finish_without_normalising(machine):
    x = Embeddings(unit=torch.ones(2, 3, device=machine.device), inverse=None)
    tau = torch.tensor(0.5, device=machine.device)
    grad = machine.tiles.finish(
        x.unit * 3, x, tau, x, torch.tensor([1.0, -1.0], device=machine.device)
    )
    assert grad.tolist() == [[8.0] * 3, [4.0] * 3]
