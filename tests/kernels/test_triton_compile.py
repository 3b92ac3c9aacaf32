"""The contrastive kernels compile ahead of time for every GPU generation without a spill."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from selftaught.kernels.triton import (  # noqa: E402
    factors,
    log_sums,
    merging,
    rows,
    spheres,
    tuning,
    views,
    weighted_sums,
)

SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
INSTRUCTION = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
OPERANDS = ("x", "x_low", "y", "y_low", "high", "low")
FLOATS = (
    "x_stats y_stats temperature row_sums column_sums maxima sums slopes of_rows of_columns "
    "unscale running logs parts more_parts row_weight row_total row_share row_positive "
    "column_weight column_total column_share z unit inverse stats measured products partner "
    "coefficient gradient row_alike column_alike alike_running alike_parts alike_more totals "
    "pairs means shares many tau z1 z2 grad gradient1 gradient2 losses"
).split()
CLASSES = ("row_classes", "column_classes", "labels")


def build(kernel, capability, constants, warps=4, stages=2, **dtypes):
    """The kernel compiled as a launch on such a device would compile it."""
    types = dict.fromkeys(FLOATS, "fp32") | dict.fromkeys(OPERANDS, "fp16")
    types |= dict.fromkeys(CLASSES, "i64") | {"classes": "i32"} | dtypes
    signature, attributes = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        number = "fp32" if name in ("fixed", "over") else "i32"
        signature[name] = "*" + types[name] if name in types else number
        if name in types or name == "D" or "stride" in name:
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": warps, "num_stages": stages, **tuning.FUSED}
    return triton.compile(source, GPUTarget("cuda", capability, 32), options)


def check(compiled, capability, folder):
    binary = folder / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    tool = triton.knobs.nvidia.cuobjdump.path
    told = subprocess.check_output([tool, "--dump-resource-usage", binary], text=True)
    stack, local = map(int, re.search(r"STACK:(\d+) .*LOCAL:(\d+)", told).groups())
    assert stack == 0 and local == 0, told
    assert compiled.metadata.shared <= SHARED[capability]


def tiles(kind, capability, width, split, half="fp16", **changes):
    shape = tuning.table_shape(kind, capability // 10, width, split)
    constants = dict(WIDTH=width, BX=shape.rows, BY=shape.columns, CHUNK=shape.chunk)
    constants |= dict(SPLIT=split, EXCLUDE=2, SAFE=False)
    if kind in ("sum", "alike"):
        kernel = log_sums.sum_tiles
        constants |= dict(SYMMETRIC=True, COLUMNS=True, CLASSES=kind == "alike")
    else:
        kernel = weighted_sums.weighted_tiles
        more = kind == "more"
        constants |= dict(OUT=shape.out, HALF=tl.bfloat16 if half == "bf16" else tl.float16)
        constants |= dict(ROW=True, COLUMN=True, CLASSES=more, SLOPE=more)
    dtypes = dict.fromkeys(OPERANDS, half)
    return build(kernel, capability, constants | changes, shape.warps, shape.stages, **dtypes)


def marked(*found):
    """All, of which only the width 128 in float32 is not slow."""
    return [
        case if case[1] == 128 and case[2] and case[0] in ("sum", "weight")
        else pytest.param(*case, marks=pytest.mark.slow)
        for case in found
    ]  # fmt: skip


CASES = [
    (kind, width, split)
    for kind in ("sum", "alike", "weight", "more")
    for width in (64, 128, 256, 768)
    for split in (False, True)
]


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("kind, width, split", marked(*CASES))
def test_tiles(kind, width, split, capability, tmp_path):
    compiled = tiles(kind, capability, width, split)
    check(compiled, capability, tmp_path)
    assert INSTRUCTION[capability] in compiled.asm["ptx"]


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("kind", ["sum", "weight"])
def test_variants(kind, capability, tmp_path):
    check(tiles(kind, capability, 128, False, "bf16"), capability, tmp_path)
    changes = dict(SYMMETRIC=False, COLUMNS=False, EXCLUDE=0) if kind == "sum" else dict(ROW=False)
    check(tiles(kind, capability, 128, True, **changes), capability, tmp_path)
    check(tiles(kind, capability, 128, True, SAFE=True), capability, tmp_path)


@pytest.mark.parametrize(
    "capability", [90, *(pytest.param(c, marks=pytest.mark.slow) for c in (80, 100))]
)
def test_small_kernels(capability, tmp_path):
    flags = dict(ROW=True, COLUMN=True, SAME=False, SHARE=2, BLOCK=factors.BLOCK)
    wide = dict(BLOCK=4, WIDE=1024)
    made = dict(WIDTH=768, NORMALIZE=True, SPLIT=True, HALF=tl.float16, SCALED=True, UNIT=True)
    merged = dict(FIRST=False, LAST=True, SAFE=False, BLOCK=256)
    of_views = made | dict(FIXED=False, CLASSES=True, COUNTED=128, BLOCK=2, WIDE=1024)
    del of_views["UNIT"]
    for kernel, constants in (
        (merging.merge_sums, merged | dict(LOSS=True, CLASSES=True)),
        (merging.merge_sums, merged | dict(LOSS=False, CLASSES=False)),
        (factors.find_factors, flags | dict(SLOPE=True)),
        (rows.measure, wide),
        (rows.make_operands, made | wide),
        (views.prepare_views, of_views),
        (views.finish_views, dict(NORMALIZE=True, CLASSES=True, BLOCK=2, WIDE=1024)),
        (rows.finish_rows, dict(NORMALIZED=True, PARTNER=True) | wide),
    ):
        dtypes = dict(x="fp32", y="fp32")
        check(build(kernel, capability, constants, **dtypes), capability, tmp_path)
    multiply = build(rows.multiply_rows, capability, wide, x="fp32", y="fp32")
    check(multiply, capability, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("width", [16, 128, 256, 768])
@pytest.mark.parametrize("split", [False, True])
def test_rows_below_their_maximum(split, width, capability, tmp_path):
    shape = tuning.table_shape("robust", capability // 10, width, split)
    constants = dict(WIDTH=width, BX=shape.rows, BY=shape.columns, CHUNK=shape.chunk)
    constants |= dict(SPLIT=split, EXCLUDE=2)
    compiled = build(merging.sum_rows, capability, constants, shape.warps, shape.stages)
    check(compiled, capability, tmp_path)


def test_every_launch_says_whether_products_and_sums_are_fused():
    """Triton 3.10 changes its default, and with it digits and speed."""
    launches = 0
    for path in Path(tuning.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            # kernel[grid](...), whose settings end in ** of a dict that holds FUSED.
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
                launches += 1
                assert any(one.arg is None for one in node.keywords), ast.unparse(node.func)
    assert launches >= 12
    blocks = rows._block(8, 128)[1], views._block(128)
    settings = spheres.shape_for(100, 128, True, 9).settings()
    assert all(one.items() >= tuning.FUSED.items() for one in (*blocks, settings))
