"""The nearest-centre kernels compile ahead of time for every GPU generation without a spill."""

import re
import subprocess

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from selftaught.kernels.triton import spheres  # noqa: E402
from selftaught.kernels.triton.spheres import gradients, kernels  # noqa: E402

SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
POINTERS = dict(
    active="i1", labels="i64", index="i64", counts="i64", order="i64", bounds="i64",
    **dict.fromkeys(
        "x centers sums origin high low length loss squared grad result".split(), "fp32"
    ),
)  # fmt: skip
# Integers that Triton finds to be multiples of 16, the latter where rows are read in vectors.
ALIGNED, VECTORS = {"DP", "KP"}, {"D", "stride", "c_stride"}
TIERS = {3: ("fp32", "fp32"), 2: ("fp16", "fp32"), 1: ("bf16", "bf16")}


def build(kernel, capability, constants, options=spheres.FUSED, vectors=True, **dtypes):
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
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, GPUTarget("cuda", capability, 32), dict(options))


def check(compiled, capability, folder, most=168):
    binary = folder / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    tool = triton.knobs.nvidia.cuobjdump.path
    told = subprocess.check_output([tool, "--dump-resource-usage", binary], text=True)
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", told)
    registers, stack, local = map(int, found.groups())
    assert stack == 0 and local == 0, told
    assert registers <= most, told
    assert compiled.metadata.shared <= SHARED[capability]


def constants(capability, count, width, tier, vectors=True, **changes):
    shape = spheres.blocks(count, width, tier, vectors, capability // 10)
    flags = dict(ACTIVE=True, TIER=tier, MAD=True, COUNTED=False)
    return flags | shape._asdict() | changes, spheres.options(shape, vectors)


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("tier", TIERS)
def test_assignment(tier, capability, tmp_path):
    dtype, operand = TIERS[tier]
    compiled = build(
        kernels.assign,
        capability,
        *constants(capability, 100, 128, tier),
        x=dtype,
        high=operand,
        low=operand,
    )
    check(compiled, capability, tmp_path)
    product = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}[capability]
    short = "f16" if capability == 100 else "bf16"
    kind = short if tier == 1 else "tf32"
    assert re.search(rf"{re.escape(product)}\S*{kind}", compiled.asm["ptx"])


@pytest.mark.parametrize(
    "capability, tier, width",
    [(80, 3, 100), (90, 3, 100), (100, 3, 100), (80, 2, 20), (80, 1, 500)],
)
def test_rows_that_cannot_be_read_in_vectors(capability, tier, width, tmp_path):
    dtype, operand = TIERS[tier]
    settings = constants(capability, 100, width, tier, vectors=False)
    compiled = build(
        kernels.assign, capability, *settings, vectors=False, x=dtype, high=operand, low=operand
    )
    check(compiled, capability, tmp_path, most=255)


@pytest.mark.parametrize("tier", [0, 1])
def test_one_center_and_wide_rows(tier, tmp_path):
    changes = dict(TIER=0) if tier == 0 else dict(MAD=False, COUNTED=True)
    compiled = build(
        kernels.assign,
        90,
        *constants(90, 1000, 512, 1, **changes),
        x="bf16",
        high="bf16",
        low="bf16",
    )
    check(compiled, 90, tmp_path)


@pytest.mark.parametrize("capability", [80, 100])
def test_gradients(capability, tmp_path):
    rows = build(gradients.gradient_rows, capability, dict(MAD=True, BN=32, BD=128))
    check(rows, capability, tmp_path)
    parts = dict(MAD=True, SPLITS=256, BN=32, BD=128)
    check(build(gradients.gradient_centers, capability, parts), capability, tmp_path)


def test_centers_about_their_mean(tmp_path):
    moved = dict(ACTIVE=True, SUMMED=False, TIER=3, BC=16, BD=32)
    check(build(kernels.prepare, 90, moved), 90, tmp_path)
    check(build(kernels.prepare, 90, moved | dict(SUMMED=True)), 90, tmp_path)
    check(build(kernels.sum_centers, 90, dict(ACTIVE=True, BC=spheres.SUMMED)), 90, tmp_path)
