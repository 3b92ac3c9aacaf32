"""The native library: built or left out, found, refused, equal on every instruction set."""

import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from selftaught.errors import InputError
from selftaught.kernels import native
from selftaught.kernels.dispatch import Request, choose, load, refusal
from selftaught.kernels.tiles import Embeddings, Excluded, Side

ROOT = Path(__file__).resolve().parents[2]
REQUEST = Request(op="ntxent", device=torch.device("cpu"), dtype=torch.float32, width=8)


@pytest.fixture
def fresh() -> Iterator[None]:
    """Forgets the loaded library before and after."""
    caches = (native._load, native._function, load)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize(("compiler", "extra"), [("/bin/false", []), ("absent", ["--inplace"])])
def test_without_a_compiler_the_build_says_so_and_goes_on(
    tmp_path: Path, compiler: str, extra: list[str]
) -> None:
    for name in ("setup.py", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    package = tmp_path / "selftaught" / "kernels"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "_native.so").write_text("from an earlier build")
    environment = {**os.environ, "CC": compiler, "CXX": compiler}
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", *extra],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "native ops are left out" in line]
    assert len(lines) == 1
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.usefixtures("fresh")
def test_absent_library_is_a_reason_not_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "_native.so")
    assert "no C++17 compiler worked" in native.reason()
    assert native.variants() == ()
    assert refusal("cpp", REQUEST) == native.reason()
    assert choose(REQUEST) == "reference"
    with pytest.raises(InputError, match="no C\\+\\+17 compiler worked"):
        choose(REQUEST, "cpp")


@pytest.mark.usefixtures("fresh")
def test_damaged_library_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "_native.so").write_bytes(b"not a library")
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "_native.so")
    assert "cannot be loaded" in native.reason()


@pytest.mark.usefixtures("fresh")
def test_library_of_another_version_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    if native.reason():
        pytest.skip(native.reason())
    native._load.cache_clear()
    monkeypatch.setattr(native, "VERSION", native.VERSION + 1)
    assert "install again" in native.reason()


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_module_says_whether_it_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_module("selftaught.kernels.native", run_name="__main__")
    expected = "native ops left out: " if native.reason() else "native ops: "
    said = capsys.readouterr().out
    assert said.startswith(expected) and said.count("\n") == 1


def test_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    if native.reason():
        pytest.skip(native.reason())
    monkeypatch.setenv(native.VARIABLE, "mmx")
    with pytest.raises(InputError, match="SELFTAUGHT_CPU: got 'mmx', allowed are baseline"):
        native.variant()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.5, 0.008])
def test_instruction_sets_agree(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, temperature: float
) -> None:
    if native.reason():
        pytest.skip(native.reason())
    from selftaught.kernels.cpp.tiles import TILES

    torch.manual_seed(0)
    x = TILES.prepare(torch.randn(210, 37, dtype=dtype), True, "fp32")
    tau = torch.tensor(temperature, dtype=dtype)
    pattern = Excluded(0, 105)
    exact = Embeddings(unit=x.unit.double(), inverse=None)
    logits = exact.unit @ exact.unit.T / tau.double()
    image = torch.arange(210) % 105
    logits.masked_fill_(image[:, None] == image, float("-inf"))
    total = logits.logsumexp(1)
    side = Side(torch.rand(210, dtype=dtype), total.to(dtype))
    softmax = side.weight.double()[:, None] * (logits - total[:, None]).exp()
    gradient = (softmax + softmax.T) @ exact.unit
    tolerance = torch.finfo(dtype).eps * (16 + 4 / temperature)
    for name in native.variants():
        monkeypatch.setenv(native.VARIABLE, name)
        assert native.variant() == name
        found, _ = TILES.log_sums(x, x, tau, pattern)
        assert (found.double() - total).abs().max() < tolerance
        sums, _ = TILES.weighted_sums(x, x, tau, pattern, row=side, column=side)
        assert (sums.double() - gradient).abs().max() < tolerance * gradient.abs().max()
        rows, _ = TILES.weighted_sums(x, x, tau, pattern, row=side, column=None)
        true = softmax @ exact.unit
        assert (rows.double() - true).abs().max() < tolerance * true.abs().max()


def test_struct_sizes_match_the_headers() -> None:
    """Every field is 8 bytes, so that no compiler pads a struct."""
    if native.reason():
        pytest.skip(native.reason())
    import ctypes

    from selftaught.kernels.cpp import tiles

    structs = (tiles._Matrix, tiles._LogSums, tiles._Side, tiles._WeightedSums, tiles._Dots)
    for struct in (*structs, tiles._Normalize, tiles._Finish):
        fields = [kind for _, kind in struct._fields_]
        assert ctypes.sizeof(struct) == sum(map(ctypes.sizeof, fields))
