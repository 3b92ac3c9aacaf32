"""The kernels for sm_90a equal the formulas, on a host's model of its instructions or on a GPU.

The model of shared memory is checked first, against the layouts that the PTX ISA prints.
"""

import ctypes
import math

import pytest
import torch

from selftaught.errors import InputError, MachineError
from selftaught.kernels.cuda import library as native
from selftaught.kernels.cuda import passes, plan
from selftaught.kernels.tiles import Excluded, Side
from tests.kernels.emulation import Machine
from tests.kernels.test_cuda_emulated import compare_passes, prepare, rows

# Seeds. Bit 0: copies land at once, not only when nothing else can go on; bit 1: so do products.
SEEDS = range(4, 8)
LATE, EARLY = SEEDS[0], SEEDS[-1]


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def machine(request, folder, monkeypatch):
    if request.param == "gpu" and not (
        torch.cuda.is_available() and torch.cuda.get_device_capability() == passes.HOPPER
    ):
        pytest.skip("no CUDA device of compute capability 9.0")
    monkeypatch.setenv(passes.PATH, "wgmma")
    machine = Machine(folder if request.param == "emulated" else None)
    monkeypatch.setattr(native, "loaded", lambda: machine.library)
    machine.seed(0)
    return machine


# Majorness, swizzle mode, and the PTX ISA's exact layout of an example in elements:
# strides of the digits of mn, then of k, as (size, stride); the last of each is a descriptor field.
LAYOUTS = {
    "k, none, tf32": (0, 0, 2, [(8, 4), (2, 32)], [(4, 1), (4, 64)], 64, 32),
    "k, 32, tf32": (0, 3, 2, [(8, 8), (2, 64)], [(4, 1), (2, 4)], None, 64),
    "mn, none, bf16": (1, 0, 1, [(8, 1), (2, 64)], [(8, 8), (2, 128)], 128, 64),
    "mn, 32, bf16": (1, 3, 1, [(8, 1), (2, 8), (2, 128)], [(8, 16), (2, 256)], 128, 256),
    "mn, 64, bf16": (1, 2, 1, [(8, 1), (4, 8), (2, 256)], [(8, 32), (2, 512)], 256, 512),
    # The general form of the table with T = 8: ((T,8,m),(8,k)):((1,T,LBO),(8T,SBO)) and
    # ((8,m),(T,2k)):((8T,SBO),(1,T)).
    "mn, 128, half": (1, 1, 1, [(8, 1), (8, 8), (2, 4096)], [(8, 64), (2, 512)], 4096, 512),
    "k, 128, half": (0, 1, 1, [(8, 64), (8, 512)], [(8, 1), (2, 8)], None, 512),
}


def place(index: int, digits: list[tuple[int, int]]) -> int:
    """Offset of an index by a layout of nested digits, the fastest first."""
    offset = 0
    for size, stride in digits:
        offset, index = offset + index % size * stride, index // size
    return offset


@pytest.mark.parametrize("name", LAYOUTS)
def test_model_of_descriptors(folder, name):
    """Elements of a tf32 layout are pairs of halves."""
    described = Machine(folder).raw.selftaught_described
    described.argtypes, described.restype = [ctypes.c_uint64] + [ctypes.c_int] * 3, ctypes.c_uint
    by_mn, mode, halves, mn_digits, k_digits, leading, stride = LAYOUTS[name]
    start, size = 0x2000, 2 * halves
    fields = (start, (leading or 8 // halves) * size, stride * size)
    descriptor = sum(value // 16 << 16 * i for i, value in enumerate(fields)) | mode << 62
    many_k = math.prod(size for size, _ in k_digits)
    bits = {0: 0, 1: 3, 2: 2, 3: 1}[mode]
    for mn in range(math.prod(size for size, _ in mn_digits)):
        for k in range(many_k):
            plain = start + size * (place(mn, mn_digits) + place(k, k_digits))
            wanted = plain ^ ((plain >> 7) % (1 << bits) << 4)
            assert described(descriptor, by_mn, mn, k * halves) == wanted


@pytest.mark.parametrize("seed", [LATE, EARLY])
@pytest.mark.parametrize(
    ("width", "tau"),
    [(17, 0.5), (64, 0.07), (100, 0.005), (128, 0.014), (200, 10.0), (256, 0.005)],
)
def test_symmetric_passes(machine, width, tau, seed):
    machine.seed(seed)
    half = 139 if width <= 128 else 69
    compare_passes(machine, rows(2 * half, width, 0), None, tau, "fp16", Excluded(0, half))


@pytest.mark.parametrize("tau", [0.2, 0.008])
@pytest.mark.parametrize(
    ("shape", "excluded"),
    [
        ((130, 71, 40), Excluded(-60, 65)),
        ((70, 300, 128), Excluded(129)),
        ((1, 1, 128), None),
        ((65, 193, 250), Excluded(0)),
    ],
)
def test_passes_of_two_sets(machine, shape, excluded, tau):
    many, others, width = shape
    z, w = rows(many, width, 0), rows(others, width, 1)
    compare_passes(machine, z, w, tau, "fp16", excluded, column_too=tau < 0.1)


@pytest.mark.parametrize("count", [1, 128, 129, 385])
def test_every_pair_is_met_once(machine, count, monkeypatch):
    """All logits equal: the sums count the pairs, whatever the cuts into launches and chunks."""
    x = machine.tiles.prepare(torch.ones(count, 8, device=machine.device), True, "fp16")
    tau = torch.tensor(1.0, device=machine.device)
    for span, parts in ((8, 8 << 20), (1, 1)):
        monkeypatch.setattr(plan, "LEAST_SPAN", span)
        monkeypatch.setattr(plan, "PARTS_BYTES", parts)
        found, _ = machine.tiles.log_sums(x, x, tau, Excluded(0))
        wanted = torch.full((count,), math.log(count - 1) + 1 if count > 1 else -math.inf)
        torch.testing.assert_close(found.cpu(), wanted, rtol=1e-6, atol=5e-4)


@pytest.mark.parametrize(("width", "many"), [(64, 700), (256, 400)])
def test_no_order_of_threads_changes_a_bit(machine, width, many, monkeypatch):
    """Rings go round more than once: what is read before it came, or overwritten, would show."""
    monkeypatch.setattr(plan, "PARTS_BYTES", 1)
    monkeypatch.setattr(plan, "SUMS_BYTES", 1)
    tau = torch.tensor(0.1, device=machine.device)
    results = []
    for seed in (0, *SEEDS):
        machine.seed(seed)
        x, _ = prepare(machine, rows(130, width, 0), "fp16")
        y, _ = prepare(machine, rows(many, width, 1), "fp16")
        own, other = machine.tiles.log_sums(x, y, tau, Excluded(5), columns=True)
        of_row, of_column = (Side(torch.ones_like(total), total) for total in (own, other))
        sums, _ = machine.tiles.weighted_sums(x, y, tau, Excluded(5), row=of_row, column=of_column)
        results.append((own, other, sums))
    for result in results:
        for value, truth in zip(result, results[0], strict=True):
            assert value.isfinite().all() and torch.equal(value, truth)


def test_parts_of_rows(machine):
    """Rows that are views of others are read where they are, however they begin."""
    z = rows(150, 64, 0)
    x = machine.tiles.prepare(z.to(machine.device), True, "fp16")
    tau = torch.tensor(0.1, device=machine.device)
    whole, _ = machine.tiles.log_sums(x.part(3, 70), x.part(13, 100), tau, None)
    one = machine.tiles.prepare(z[3:73].to(machine.device), True, "fp16")
    other = machine.tiles.prepare(z[13:113].to(machine.device), True, "fp16")
    assert torch.equal(whole, machine.tiles.log_sums(one, other, tau, None)[0])


def test_path_is_chosen(machine, monkeypatch):
    fp16 = machine.tiles.prepare(torch.ones(3, 70, device=machine.device), True, "fp16")
    fp32 = machine.tiles.prepare(torch.ones(3, 70, device=machine.device), True, "fp32")
    assert passes.shape_of(fp16, fp16) == (128, passes.WGMMA)
    assert passes.shape_of(fp32, fp32) == (128, passes.SPLIT)
    for off in ("mma", ""):
        monkeypatch.setenv(passes.PATH, off)
        assert passes.shape_of(fp16, fp16) == (128, passes.WHOLE)
    monkeypatch.delenv(passes.PATH)
    assert passes.shape_of(fp16, fp16) == (128, passes.WHOLE)
    monkeypatch.setenv(passes.PATH, "fast")
    with pytest.raises(InputError, match="fast"):
        passes.shape_of(fp16, fp16)
    monkeypatch.setenv(passes.PATH, "wgmma")
    monkeypatch.setattr(machine.library, "capability", lambda device: (10, 0))
    with pytest.raises(MachineError, match=r"9\.0"):
        passes.shape_of(fp16, fp16)
