"""The phases of `gpu_suite` that run other programs: nvcc, pytest, compute-sanitizer, ncu."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.contrastive_peers import providers
from benchmarks.ntxent import inputs
from benchmarks.record import Rows
from selftaught.kernels.cuda.build import find_nvcc
from selftaught.kernels.cuda.passes import PATH
from selftaught.losses import nearest_center

ROOT = Path(__file__).parents[1]
WIDTH, TEMPERATURE = 128, 0.5


class Run(NamedTuple):
    """What a phase is given.

    Attributes:
        out: folder of the results.
        rows: their CSV.
        device: where it runs.
    """

    out: Path
    rows: Rows
    device: torch.device

    @property
    def real(self) -> bool:
        """On a GPU, not a rehearsal."""
        return self.device.type == "cuda"

    def pick(self, real: Any, rehearsed: Any) -> Any:
        """A size on a GPU, or one that the interpreter can do."""
        return real if self.real else rehearsed


def command(run: Run, words: Sequence[str], limit: float, name: str, **more: str) -> int:
    """Exit code of a program whose output goes to <name>.log; 124: it ran past its limit."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **more}
    with (run.out / f"{name}.log").open("w") as log:
        settings = {"cwd": ROOT, "env": environment, "stdout": log, "stderr": subprocess.STDOUT}
        try:
            return subprocess.run(words, timeout=limit, **settings).returncode
        except subprocess.TimeoutExpired:
            return 124


@contextmanager
def cuda_path(name: str) -> Iterator[None]:
    """How backend "cuda" multiplies for a provider: it is read at every launch."""
    before = os.environ.get(PATH)
    os.environ[PATH] = "wgmma" if "wgmma" in name else "mma"
    try:
        yield
    finally:
        os.environ.pop(PATH)
        if before is not None:
            os.environ[PATH] = before


def build(run: Run) -> None:
    """The CUDA library, where nvcc is."""
    if find_nvcc() is None:
        run.rows.add(phase="build", note="skipped: nvcc is not installed")
        return
    # A rehearsal has no use for it.
    words = [sys.executable, "-m", "selftaught.kernels.cuda.build"] if run.real else ["true"]
    code = command(run, words, 55, "build")
    run.rows.add(phase="build", note=f"exit code {code}")
    if code:
        raise RuntimeError(f"build: exit code {code}, see build.log")


def tests(run: Run) -> None:
    """tests/gpu on all cores, with whatever of pytest's plugins is there."""
    there = {name: importlib.util.find_spec(name) for name in ("pytest", "xdist", "pytest_timeout")}
    if there["pytest"] is None:
        run.rows.add(phase="tests", note="skipped: pytest is not installed")
        return
    words = [sys.executable, "-m", "pytest", "tests/gpu", "-o", "addopts=", "-q", "-rs"]
    if there["pytest_timeout"]:
        words.append("--timeout=120")
    if there["xdist"] and run.real:
        words += ["-n", "12"]
    if not run.real:
        words.append("--collect-only")
    code = command(run, words, run.pick(145, 60), "tests", TRITON_INTERPRET="0")
    last = (run.out / "tests.log").read_text().strip().splitlines()[-1:]
    run.rows.add(phase="tests", note=f"exit code {code}: {' '.join(last)}"[:200])
    if code:
        raise RuntimeError(f"tests: exit code {code}, see tests.log")


def once(rows: int, *names: str) -> None:
    """One step of NT-Xent by each of some providers, and one of the nearest centre: for tools."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    there, _ = providers("ntxent", WIDTH, device)
    for name in names:
        if name.replace(" wgmma", "") in there:
            with cuda_path(name):
                views = inputs(rows, WIDTH, device, 1.0)
                value = there[name.replace(" wgmma", "")](*views, TEMPERATURE)
                torch.autograd.grad(value, views)
    x, centers = (torch.randn(n, WIDTH, device=device) for n in (rows, 100))
    nearest_center(x, centers, backend="triton")
    if device.type == "cuda":
        torch.cuda.synchronize()


SMALL = "from benchmarks.gpu_tools import once; once({}, {})"
EACH = ("selftaught triton fp16", "selftaught cuda fp16", "selftaught cuda wgmma fp16")


def _program(rows: int) -> list[str]:
    return [sys.executable, "-c", SMALL.format(rows, ", ".join(map(repr, EACH)))]


def sanitizer(run: Run) -> None:
    """compute-sanitizer over one small launch of every kernel."""
    tool = shutil.which("compute-sanitizer") if run.real else shutil.which("true")
    if tool is None:
        run.rows.add(phase="sanitizer", note="skipped: compute-sanitizer is not installed")
        return
    wrong = []
    for check in ("memcheck", "synccheck"):
        words = [tool, "--tool", check, "--error-exitcode", "9", *_program(300)]
        code = command(run, words, 38, check, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        note = {0: "clean", 124: "ran past its limit"}.get(code, f"exit code {code}")
        run.rows.add(phase="sanitizer", kernel=check, shape=f"300x{WIDTH}", note=note)
        wrong += [check] if code else []
    if wrong:
        raise RuntimeError(f"sanitizer: {', '.join(wrong)} not clean, see its log")


COUNTED = "regex:(sum_tiles|weighted_tiles|wgmma_log_sums|wgmma_weighted_sums|assign)"
SECTIONS = ("SpeedOfLight", "WarpStateStats", "Occupancy", "MemoryWorkloadAnalysis")


def ncu(run: Run) -> None:
    """Hardware counters of five kernels, in ncu.csv; the clocks stay as they are."""
    tool = shutil.which("ncu") if run.real else shutil.which("true")
    if tool is None:
        run.rows.add(phase="ncu", note="skipped: ncu is not installed")
        return
    words = [tool, "--clock-control", "none", "--kernel-name", COUNTED, "--launch-count", "12"]
    words += [word for name in SECTIONS for word in ("--section", name)]
    words += ["--csv", "--log-file", str(run.out / "ncu.csv"), *_program(16_384)]
    code = command(run, words, 75, "ncu")
    run.rows.add(phase="ncu", note=f"exit code {code}")
    if code:
        raise RuntimeError(f"ncu: exit code {code}, see ncu.log")
