"""The Triton kernels' tables in Triton's interpreter, and on the GPU if there is one.

Of tiles, of nearest centres, and the losses' own on the backend.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from selftaught.kernels import triton as backend
from selftaught.kernels.dispatch import Request
from selftaught.kernels.triton import tuning

ROOT = Path(__file__).resolve().parents[2]
# What is run of each table; all of it takes minutes in the interpreter.
QUICK = {
    "tests/kernels/triton_tiles_cases.py": "(widths and (17 or 200)) or (symmetric and 0.005-34) "
    "or (rectangles and 0.2-case3) or (exact and (0.07 or 0.1)) or "
    "(low_precision and (dtype0-fp16 or dtype1-bf16)) or tiers or "
    "(normalised and (1e-12 or 10000)) or nothing or dots or contiguous",
    "tests/kernels/triton_views_cases.py": "labels1-dtype0 or near_one or above_all or "
    "9-17-0.2-mixed or small or rounds_and_parts and mixed or half and dtype1-mixed or "
    "reductions or extreme and 0.0125-ntxent",
    "tests/kernels/triton_nearest_center_cases.py": "(collapse and (dtype0 or 1.0-1.0-dtype)) or "
    "(ties and dtype0) or inactive or (does_not_depend and dtype1) or wrong_rows or "
    "(gradients and (shape1 or shape7 or shape8)) or no_rows or shape11-dtype11 or "
    "(more_centers and 1e-05-dtype0)",
    "tests/losses/test_contrastive.py": "float32_error and (cold or images) or "
    "unchecked and ntxent-5",
}
TILES, VIEWS, CENTERS, LOSSES = QUICK
WHOLE = {
    TILES: "",
    VIEWS: "",
    CENTERS: "",
    LOSSES: "float32_error or half_precision or autocast or zero_row or unchecked",
}


def run(tables: dict[str, str], **variables: str) -> None:
    # Triton reads the variable when a kernel is defined: every mode needs a process of its own,
    # and one serves all tables.
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    chosen = " or ".join(
        f"({Path(table).name} and ({words}))" if words else Path(table).name
        for table, words in tables.items()
    )
    plain = ["-x", "--timeout=900", "-p", "no:cacheprovider", "-W", "ignore", "-k", chosen]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plain, *tables],
        cwd=ROOT,
        env=kept | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout


@pytest.mark.timeout(900)
def test_a_choice_in_the_interpreter():
    run(QUICK, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")


@pytest.mark.slow
@pytest.mark.parametrize("table", WHOLE)
def test_all_in_the_interpreter(table):
    run({table: WHOLE[table]}, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")


@pytest.mark.gpu
@pytest.mark.parametrize("table", [TILES, VIEWS, CENTERS])
def test_on_the_gpu(table):
    run({table: ""})


@pytest.mark.parametrize("op", ["ntxent", "supcon", "info_nce"])
def test_refusals(op):
    def request(device, dtype=torch.float32, width=128):
        return Request(op=op, device=torch.device(device), dtype=dtype, width=width)

    assert backend.refusal(request("cpu")) == "runs on cuda only"
    assert "float64" in backend.refusal(request("cuda", torch.float64))
    assert "runs on cuda" in backend.refusal(request("meta"))


@pytest.mark.parametrize(
    "op, capability, version, refused",
    [
        ("mad", (10, 0), (3, 6), True),
        ("nearest_center", (10, 3), (3, 7), True),
        ("mad", (10, 0), (3, 8), False),
        ("mad", (9, 0), (3, 6), False),
        ("mad", (12, 0), (3, 6), False),
        ("ntxent", (10, 0), (3, 6), False),
    ],
)
def test_nearest_centers_on_sm_100_need_a_compiler_that_builds_them(
    op, capability, version, refused, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(backend, "VERSION", version)
    reason = backend.refusal(
        Request(op=op, device=torch.device("cuda"), dtype=torch.float32, width=128)
    )
    assert ("needs Triton 3.8" in reason) if refused else reason == ""


@pytest.mark.parametrize("kernel", ["sum", "alike", "weight", "more"])
@pytest.mark.parametrize("split", [False, True])
def test_tables_have_every_shape(kernel, split):
    for major in (7, 8, 9, 10, 11, 12):
        generation = tuning.generation_of(major)
        for width in (1, 16, 17, 100, 200, 256, 257, 768, 1000):
            wide = tuning.padded(width)
            assert wide >= width and wide % 16 == 0
            shape = tuning.table_shape(kernel, generation, wide, split)
            assert wide % shape.chunk == 0 and shape.chunk >= 16
            if kernel in ("sum", "alike"):
                assert shape.rows % shape.columns == 0
            else:
                assert 16 <= shape.out <= wide
            assert shape in tuning.candidates(kernel, shape, wide)


@pytest.mark.parametrize("kernel, fixed, most", [("sum", 1.5, 64), ("weight", 3.0, 16)])
def test_programs_fill_their_last_wave(kernel, fixed, most):
    """Time in visits, of 132 multiprocessors that take one program at a time."""
    cpu, shape = torch.device("cpu"), tuning.table_shape(kernel, 9, 128, False)
    for rows in range(3072, 65_537, 1024):
        blocks, visits = rows // shape.rows, rows // shape.columns
        each = tuning.visits_each(blocks, visits, shape, cpu, fixed, most)
        programs = blocks * -(-visits // each)
        assert -(-visits // each) <= most
        taken, least = -(-programs // 132) * (fixed + each), blocks * visits / 132
        assert taken < 1.25 * least + 2 * fixed, rows
    # A block alone is cut into as many parts as may be, one visit is not cut.
    assert tuning.visits_each(1, 64, shape, cpu, fixed, most) == 64 // most
    assert tuning.visits_each(1, 1, shape, cpu, fixed, most) == 1
    halves = shape._replace(warps=4)  # two programs at a time
    assert tuning.visits_each(132, 64, shape, cpu, fixed, most) == 64
    assert tuning.visits_each(132, 64, halves, cpu, fixed, most) == 32
