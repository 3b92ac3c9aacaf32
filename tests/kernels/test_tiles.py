"""The tiled passes of every backend at hand against the protocol's formulas in float64."""

import importlib
import itertools
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from selftaught.kernels import native
from selftaught.kernels.reference.tiles import TILES as EAGER
from selftaught.kernels.tiles import Embeddings, Excluded, Side, Tiles
from tests.kernels.tiles_table import (
    NONE,
    Case,
    cases,
    masked_logits,
    rows_of,
    side,
    temperature_of,
    true_log_sums,
    true_logits,
    true_weighted_sums,
)
from tests.ranks import run_ranks

# Name, module that holds TILES, device, dtypes, reason to skip.
BACKENDS = [
    ("reference", "selftaught.kernels.reference.tiles", "cpu", (torch.float32, torch.float64), ""),
    (
        "cpp",
        "selftaught.kernels.cpp.tiles",
        "cpu",
        (torch.float32, torch.float64),
        native.reason(),
    ),
]


class Backend(NamedTuple):
    tiles: Tiles
    device: str
    dtypes: tuple[torch.dtype, ...]


@pytest.fixture(params=BACKENDS, ids=lambda row: row[0])
def backend(request: pytest.FixtureRequest) -> Backend:
    name, module, device, dtypes, absent = request.param
    if absent:
        pytest.skip(f"{name}: {absent}")
    return Backend(importlib.import_module(module).TILES, device, dtypes)


@pytest.fixture
def cpp() -> Tiles:
    if native.reason():
        pytest.skip(native.reason())
    return importlib.import_module("selftaught.kernels.cpp.tiles").TILES


def error(found: Tensor, true: Tensor) -> float:
    """Largest error, as a share of the largest value."""
    finite = true.isfinite()
    assert torch.equal(found.isfinite(), finite)
    assert torch.equal(found[~finite].double(), true[~finite])
    return ((found.double() - true)[finite].abs().amax() / true[finite].abs().amax()).item()


def check(backend: Backend, case: Case, slope: bool = True) -> None:
    """Both passes: error at most twice that of eager formulas at the same precision."""
    # A logit of size L cannot be known better than to L units of rounding; in float64 neither
    # can the truth be.
    dtype = case.x.unit.dtype
    units = (8 + 2 * true_logits(case).abs().amax().item()) * (4 if dtype == torch.float64 else 1)
    floor = units * torch.finfo(dtype).eps
    call = (case.x, case.y, case.temperature, case.excluded)
    for columns in (False, True):
        found = backend.tiles.log_sums(*call, columns=columns)
        eager = EAGER.log_sums(*call, columns=True)
        assert (found[1] is None) == (not columns)
        for one, plain, true in zip(found, eager, true_log_sums(case), strict=True):
            if one is not None and true.isfinite().any():
                assert error(one, true) <= 2 * error(plain, true) + floor
    if case.row is None and case.column is None:
        return
    sides = {"row": case.row, "column": case.column, "classes": case.classes}
    slope = slope and case.row is not None
    found = backend.tiles.weighted_sums(*call, **sides, slope=slope)
    eager = EAGER.weighted_sums(*call, **sides, slope=slope)
    assert (found[1] is None) == (not slope)
    for one, plain, true in zip(found, eager, true_weighted_sums(case), strict=True):
        if one is not None and true.abs().amax() > 0:
            assert error(one, true) <= 2 * error(plain, true) + floor


@pytest.mark.parametrize(
    "rows, columns, width, temperature",
    [
        (1, 1, 1, 0.5),
        (2, 3, 16, 0.1),
        (3, 100, 17, 10.0),
        (17, 2, 100, 0.005),
        (100, 257, 16, 0.02),
        (98, 96, 33, 0.07),
        (257, 100, 17, 0.01),
        (194, 290, 3, 0.3),
    ],
)
def test_every_option(
    backend: Backend, rows: int, columns: int, width: int, temperature: float
) -> None:
    torch.manual_seed(rows + columns)
    for dtype in backend.dtypes:
        for case in cases(rows, columns, width, temperature, dtype):
            check(backend, case)


@pytest.mark.parametrize("width", [1, 16, 17, 100, 128, 200, 255, 256, 512, 768, 1024])
@pytest.mark.parametrize("temperature", [0.5, 0.008])
def test_widths(backend: Backend, width: int, temperature: float) -> None:
    torch.manual_seed(width)
    for dtype in backend.dtypes:
        tau = temperature_of(temperature, dtype)
        case = Case(rows_of(98, width, dtype), rows_of(55, width, dtype), tau, Excluded(-20))
        check(backend, case._replace(row=side(case, True, False), column=side(case, False, False)))
        case = Case(case.x, case.x, tau, Excluded(0, 49))
        both = side(case, True, False)
        check(backend, case._replace(row=both, column=both))


@pytest.mark.parametrize(
    "temperature", [0.005, 0.0107, 0.0124, 0.0126, 0.0145, 0.018, 0.0182, 0.03, 10.0]
)
def test_temperatures(backend: Backend, temperature: float) -> None:
    torch.manual_seed(1)
    for dtype in backend.dtypes:
        x = rows_of(130, 24, dtype)
        case = Case(x, x, temperature_of(temperature, dtype), Excluded(0, 65))
        both = side(case, True, True)
        check(backend, case._replace(row=both, column=both))
        check(backend, case._replace(row=both))


def test_many_blocks(cpp: Tiles) -> None:
    """Enough rows for every way of sharing work out."""
    torch.manual_seed(2)
    x, tau = rows_of(96 * 33 + 4, 8, torch.float32), torch.tensor(0.1)
    case = Case(x, x, tau, Excluded(0, x.unit.shape[0] // 2))
    logits = masked_logits(case)
    found, _ = cpp.log_sums(x, x, tau, case.excluded)
    total = logits.logsumexp(1)
    assert error(found, total) < 4e-7
    both = Side(torch.rand(len(total)), found)
    softmax = logits.sub_(total[:, None]).exp_() * both.weight[:, None]
    true = (softmax + softmax.T) @ x.unit.double()
    sums, _ = cpp.weighted_sums(x, x, tau, case.excluded, row=both, column=both)
    assert error(sums, true) < 4e-6
    y = x.part(0, 250)
    check(Backend(cpp, "cpu", ()), Case(x, y, tau, Excluded(1), row=both._replace(positive=found)))


@pytest.mark.parametrize("size", [10.0, 1e3, 1e5])
def test_large_rows(backend: Backend, size: float) -> None:
    """Rows that were not normalised: one logit of a row towers over the others."""
    torch.manual_seed(3)
    for dtype in backend.dtypes:
        x = Embeddings(unit=(size * torch.randn(150, 40)).to(dtype), inverse=None)
        y = Embeddings(unit=torch.randn(70, 40).to(dtype), inverse=None)
        case = Case(x, y, temperature_of(0.5, dtype), Excluded(5))
        true_rows, true_columns = true_log_sums(case)
        found = backend.tiles.log_sums(x, y, case.temperature, Excluded(5), columns=True)
        tolerance = 16 * torch.finfo(dtype).eps
        assert error(found[0], true_rows) < tolerance and error(found[1], true_columns) < tolerance
        weight = torch.ones(150, dtype=dtype)
        sums, _ = backend.tiles.weighted_sums(
            x,
            y,
            case.temperature,
            Excluded(5),
            row=Side(weight, found[0], found[0]),
            column=None,
        )
        logits = masked_logits(case)
        top = logits.topk(2, 1).values
        clear = top[:, 0] - top[:, 1] > 40
        assert clear.any()
        assert torch.allclose(
            sums[clear], y.unit[logits.argmax(1)[clear]], atol=40 * size * tolerance
        )


def test_zero_and_equal_rows(backend: Backend) -> None:
    torch.manual_seed(4)
    z = torch.randn(100, 20)
    z[::3] = 0
    z[1::3] = z[1]
    for dtype, normalize in itertools.product(backend.dtypes, (True, False)):
        x = backend.tiles.prepare(z.to(dtype), normalize, "fp32")
        for temperature in (0.005, 0.5):
            case = Case(x, x, temperature_of(temperature, dtype), Excluded(0, 50))
            both = side(case, True, False)
            check(backend, case._replace(row=both, column=both))


def test_nothing_left(backend: Backend) -> None:
    tau = torch.tensor(0.5)
    x = rows_of(2, 4, torch.float32)
    for pattern in (Excluded(0, 1), Excluded(0)):
        rows = x if pattern.half else x.part(0, 1)
        found, columns = backend.tiles.log_sums(rows, rows, tau, pattern, columns=True)
        assert (found == NONE).all() and (columns == NONE).all()
        zeros = torch.zeros(len(found))
        both = Side(torch.ones(len(found)), zeros, zeros)
        for row, column in ((both, both), (both, None)):
            sums, slopes = backend.tiles.weighted_sums(
                rows, rows, tau, pattern, row=row, column=column, slope=True
            )
            assert (sums == 0).all() and (slopes == 0).all()


def test_totals_beyond_the_columns_at_hand(backend: Backend) -> None:
    """A denominator that other ranks' columns dominate, and weights of any size."""
    torch.manual_seed(5)
    x = rows_of(50, 12, torch.float32)
    for temperature, above, weight in (
        (0.03, 60.0, 1.0),
        (0.0185, 0.0, 1e-29),
        (0.0185, 30.0, 1e20),
    ):
        case = Case(x, x, torch.tensor(temperature), None)
        own = side(case, True, False)
        case = case._replace(row=own._replace(total=own.total + above, weight=weight * own.weight))
        check(backend, case)


def test_prepare_dots_finish(backend: Backend) -> None:
    torch.manual_seed(6)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        z = torch.randn(37, 19).to(dtype)
        z[3] = 0
        x = backend.tiles.prepare(z, True, "fp32")
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        assert x.unit.dtype == exact and x.inverse is not None
        length = z.double().norm(dim=1, keepdim=True)
        true = torch.where(length > 0, z.double() / length, 0)
        tolerance = 4 * torch.finfo(exact).eps
        assert (x.unit.double() - true).abs().max() < tolerance
        assert (x.inverse.double() * length - (length > 0).double()).abs().max() < tolerance
        y = backend.tiles.prepare(torch.randn(37, 19, dtype=exact), True, "fp32")
        found = backend.tiles.dots(x, y)
        assert (found.double() - (x.unit.double() * y.unit.double()).sum(1)).abs().max() < tolerance
        tau = torch.tensor(0.3, dtype=exact)
        sums, own = torch.randn(37, 19, dtype=exact), torch.randn(37, dtype=exact)
        g = (sums.double() + own.double()[:, None] * y.unit.double()) / tau.double()
        unit = x.unit.double()
        g = (g - (g * unit).sum(1, keepdim=True) * unit) * x.inverse.double()
        assert error(backend.tiles.finish(sums, x, tau, y, own), g) < 4 * tolerance
        plain = backend.tiles.prepare(z, False, "fp32")
        assert plain.inverse is None
        assert (
            error(backend.tiles.finish(sums, plain, tau), sums.double() / tau.double()) < tolerance
        )


@pytest.fixture
def restored_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize("temperature", [0.1, 0.008])
def test_equal_bits_for_any_number_of_threads(backend: Backend, temperature: float) -> None:
    if backend.tiles is EAGER:
        pytest.skip("eager matrix products may depend on the number of threads")
    torch.manual_seed(7)
    tau = torch.tensor(temperature)
    x, y = rows_of(96 * 5 + 2, 40, torch.float32), rows_of(96 * 4 + 7, 40, torch.float32)
    count = x.unit.shape[0]
    found: list[list[Tensor]] = []
    for threads in (1, 2, 3, 7, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(8)
        results: list[Tensor | None] = []
        for case in (Case(x, y, tau, Excluded(7)), Case(x, x, tau, Excluded(0, count // 2))):
            call = (case.x, case.y, tau, case.excluded)
            results += backend.tiles.log_sums(*call, columns=True)
            row = side(case, True, False)
            column = row if case.y is x else side(case, False, False)
            for of_column in (column, None):
                results += backend.tiles.weighted_sums(*call, row=row, column=of_column, slope=True)
        found.append([result for result in results if result is not None])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_equal_rows_have_equal_products(cpp: Tiles) -> None:
    """`dots` and the passes sum in one order: a copy of the positive is no harder to the bit."""
    torch.manual_seed(9)
    for width in (5, 128, 600):
        x = rows_of(1, width, torch.float32)
        y = rows_of(1, width, torch.float32)
        tau = torch.tensor(0.005)
        log_sum, _ = cpp.log_sums(x, y, tau, None)
        assert torch.equal(log_sum, cpp.dots(x, y) / tau)


def test_nan_is_passed_on(cpp: Tiles) -> None:
    z = torch.randn(5, 3)
    z[2, 1] = float("nan")
    x = Embeddings(unit=z, inverse=None)
    found, columns = cpp.log_sums(x, x, torch.tensor(0.5), Excluded(0), columns=True)
    assert found.isnan().all() and columns.isnan().all()


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e-38, 1e-20, 1e20, 1e38, 1e160, 1e300])
def test_prepare_at_the_ends_of_the_range(backend: Backend, size: float) -> None:
    torch.manual_seed(10)
    z = torch.randn(6, 5, dtype=torch.float64)
    for dtype in backend.dtypes:
        scaled = (z / z.abs().amax() * size).to(dtype)
        x = backend.tiles.prepare(scaled, True, "fp32")
        assert x.inverse is not None
        zero = scaled.abs().amax(1) < torch.finfo(dtype).tiny
        assert torch.equal((x.inverse == 0)[:, 0], zero)
        assert (x.unit[zero] == 0).all()
        if scaled.isfinite().all() and size < torch.finfo(dtype).max / 3:
            largest = scaled[~zero].double().abs().amax(1, keepdim=True)
            true = scaled[~zero].double() / largest
            length = true.norm(dim=1, keepdim=True)
            tolerance = 8 * torch.finfo(dtype).eps
            assert torch.allclose(x.unit[~zero].double(), true / length, rtol=tolerance)
            inverse = (x.inverse[~zero].double() * largest) * length
            assert torch.allclose(inverse, torch.ones_like(inverse), rtol=1e-5)


def memory() -> float:
    """MB by which both passes over 8,192 rows raise the most that was ever in use."""
    import resource

    from selftaught.kernels.cpp.tiles import TILES

    torch.set_num_threads(2)

    def peak() -> float:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / (1024 if sys.platform == "linux" else 1024**2)

    def work(count: int) -> float:
        x = TILES.prepare(torch.randn(count, 128), True, "fp32")
        tau, pairs = torch.tensor(0.5), Excluded(0, count // 2)
        before = peak()
        total, _ = TILES.log_sums(x, x, tau, pairs)
        side = Side(torch.ones(count), total, total)
        sums, _ = TILES.weighted_sums(x, x, tau, pairs, row=side, column=side)
        TILES.finish(sums, x, tau)
        return peak() - before

    work(96)
    return work(8192)


def test_memory_at_8192_rows(cpp: Tiles) -> None:
    assert run_ranks(1, memory)[0] < 48
