"""The nearest-centre kernels compile ahead of time for every GPU generation without a spill.

What their machine code says beside that: programs that fit a multiprocessor, instructions and bytes
for every 64 rows. None of it is a time.
"""

import re
import subprocess

import pytest
import torch

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from selftaught.kernels.triton import spheres, tuning  # noqa: E402
from selftaught.kernels.triton.spheres import gradients, kernels  # noqa: E402

SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
POINTERS = dict(
    active="i1", labels="i64", index="i64", counts="i64", order="i64", bounds="i64",
    high="bf16", low="bf16",
    **dict.fromkeys("x centers sums origin length loss squared grad result".split(), "fp32"),
)  # fmt: skip
# Integers that Triton finds to be multiples of 16, the latter where rows are read in vectors.
ALIGNED, VECTORS = {"DP", "KP"}, {"D", "stride", "c_stride"}
NAMES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
OPTIONS = ("num_warps", "num_stages", "maxnreg")
REGISTERS = 65_536  # of a multiprocessor


def build(kernel, capability, constants, vectors=True, **dtypes):
    """The kernel compiled as a launch on such a device would compile it."""
    signature, attributes, types = {}, {}, POINTERS | dtypes
    aligned = ALIGNED | VECTORS if vectors else ALIGNED
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in types:
            signature[name] = "*" + types[name]
        else:
            signature[name] = "fp32" if name in ("eta", "eps", "slack") else "i32"
        if name in types or name in aligned:
            attributes[(place,)] = [["tt.divisibility", 16]]
    options = tuning.FUSED | {name: constants[name] for name in OPTIONS if name in constants}
    constants = {name: value for name, value in constants.items() if name in signature}
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, GPUTarget("cuda", capability, 32), options)


def check(compiled, capability, folder, programs=1):
    """No spill, and so many programs fit a multiprocessor."""
    binary = folder / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    tool = triton.knobs.nvidia.cuobjdump.path
    told = subprocess.check_output([tool, "--dump-resource-usage", binary], text=True)
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", told)
    registers, stack, local = map(int, found.groups())
    assert stack == 0 and local == 0, told
    # Registers are given out to warps, 256 at a time; a program takes 1 KB of shared memory more.
    registers = -(-registers // 8) * 8
    assert registers * 32 * compiled.metadata.num_warps * programs <= REGISTERS, told
    assert (compiled.metadata.shared + 1024) * programs <= SHARED[capability] + 1024


def assignment(capability, count, width, dtype, vectors=True, **changes):
    """`kernels.assign` compiled for K centres of width D, and the shape it has."""
    shape = spheres.shape_for(count, width, vectors, capability // 10)
    constants = dict(
        ACTIVE=True, MAD=True, COUNTED=False, PARTS=spheres.parts_of(NAMES[dtype], count)
    )
    constants |= shape.settings() | changes
    return build(kernels.assign, capability, constants, vectors, x=dtype), shape


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("dtype", NAMES)
def test_assignment(dtype, capability, tmp_path):
    compiled, shape = assignment(capability, 100, 128, dtype)
    check(compiled, capability, tmp_path, shape.programs)
    product = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}[capability]
    short = "f16" if capability == 100 else "bf16"
    assert re.search(rf"{re.escape(product)}\S*{short}", compiled.asm["ptx"])


@pytest.mark.parametrize(
    "capability, dtype, width",
    [(80, "fp32", 100), (90, "fp32", 100), (100, "fp32", 100), (80, "fp16", 20), (80, "bf16", 500)],
)
def test_rows_that_cannot_be_read_in_vectors(capability, dtype, width, tmp_path):
    compiled, shape = assignment(capability, 100, width, dtype, vectors=False)
    check(compiled, capability, tmp_path, shape.programs)


@pytest.mark.parametrize(
    "count, width, dtype", [(1, 512, "bf16"), (1000, 512, "bf16"), (1000, 128, "fp32")]
)
def test_one_center_and_centers_that_are_not_kept(count, width, dtype, tmp_path):
    compiled, shape = assignment(90, count, width, dtype, MAD=False, COUNTED=True)
    assert not shape.KEPT or count == 1
    check(compiled, 90, tmp_path, shape.programs)


def instructions(compiled, folder):
    """Those of a round of the loop over rows, where no centres are too close to call."""
    binary = folder / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    tool = triton.knobs.nvidia.cuobjdump.path
    text = subprocess.check_output([tool, "--dump-sass", binary], text=True)
    lines = [(int(at, 16), what) for at, what in re.findall(r"/\*(\w{4,})\*/\s+([^;]*);", text)]
    products = [at for at, what in lines if "GMMA" in what]
    jumps = [(at, int(to, 16)) for at, what in lines for to in re.findall(r"BRA .*?0x(\w+)", what)]
    end, start = min(jumps, key=lambda jump: jump[1] - jump[0])
    # The second look at close centres, with products of its own, is jumped over.
    skipped = max(to - at for at, to in jumps if products[0] < at < products[-1] < to < end)
    return (end - start - skipped) // 16


@pytest.mark.parametrize("dtype, most", [("fp32", 1950), ("bf16", 1500)])
def test_instructions_for_64_rows_and_centers_that_are_kept(dtype, most, tmp_path):
    compiled, shape = assignment(90, 100, 128, dtype, ACTIVE=False)
    check(compiled, 90, tmp_path, shape.programs)
    assert (shape.BN, shape.warps, shape.programs) == (64, 4, 2)
    assert instructions(compiled, tmp_path) <= most
    # Parts of centres are (32, 128): read before the loop over rows, and not in it.
    before, loop = compiled.asm["ttgir"].split("scf.for %block")
    assert before.count("ttg.local_alloc") == 8 and "tensor<32x128x!tt.ptr<bf16>" in before
    assert "tensor<32x128x!tt.ptr<bf16>" not in loop


class Recorder:
    """Stands for a kernel, and keeps what its launches are given."""

    def __init__(self):
        self.grids = []

    def __getitem__(self, grid):
        self.grids.append(grid)
        return lambda *arguments, **settings: None


@pytest.mark.parametrize(
    "dtype, capability, most", [("fp32", 90, 66), ("bf16", 90, 50), ("fp32", 80, 97)]
)
def test_bytes_of_the_second_cache_for_64_rows(dtype, capability, most, monkeypatch):
    """KB at most: rows once, a centre for each, and centres' parts by the grid of the launch."""
    assign = Recorder()
    monkeypatch.setattr(kernels, "assign", assign)
    monkeypatch.setattr(kernels, "prepare", Recorder())
    monkeypatch.setattr(spheres, "generation", lambda device: capability // 10)
    rows, count, width = 1_000_000, 100, 128
    x = torch.empty(rows, width, dtype=NAMES[dtype], device="meta")
    c = torch.empty(count, width, device="meta")
    spheres.TritonSpheres().search(x, c, None)
    ((programs,),) = assign.grids
    shape = spheres.shape_for(count, width, True, capability // 10)
    assert programs == shape.programs * 132
    reads = programs if shape.KEPT else rows / shape.BN
    parts = 2 * 2 * 128 * width * reads * 64 / rows
    assert (64 * width * (x.element_size() + c.element_size()) + parts) / 1024 < most


@pytest.mark.parametrize("capability", [80, 100])
def test_gradients(capability, tmp_path):
    rows = build(gradients.gradient_rows, capability, dict(MAD=True, BN=32, BD=128))
    check(rows, capability, tmp_path)
    parts = dict(MAD=True, SPLITS=256, BN=32, BD=128)
    check(build(gradients.gradient_centers, capability, parts), capability, tmp_path)


def test_centers_about_their_mean(tmp_path):
    moved = dict(ACTIVE=True, SUMMED=False, PARTS=2, BC=16, BD=32)
    check(build(kernels.prepare, 90, moved), 90, tmp_path)
    check(build(kernels.prepare, 90, moved | dict(SUMMED=True)), 90, tmp_path)
    check(build(kernels.sum_centers, 90, dict(ACTIVE=True, BC=spheres.SUMMED)), 90, tmp_path)
