"""nvcc builds the CUDA library without a GPU: no spilled registers, loads, says what is missing."""

import re

import pytest
import torch

from selftaught.errors import InputError
from selftaught.kernels import cuda
from selftaught.kernels.cuda import build, passes
from selftaught.kernels.cuda import library as native
from selftaught.kernels.dispatch import Request

KERNEL = re.compile(
    r"Compiling entry function '(\w+)' for 'sm_(\d+a?)'.*?"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
    r"Used (\d+) registers",
    re.DOTALL,
)
TILED = re.compile("LogSumsShape|WeightedSumsShape|AssignShape")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Path of a freshly built library, and what the assembler said about every kernel."""
    if build.find_nvcc() is None:
        pytest.skip("no nvcc in CUDA_HOME or on the path")
    path = tmp_path_factory.mktemp("cuda") / "library.so"
    return path, build.build(path, ["-Xptxas", "-v"])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_kernel_spills(built):
    kernels = KERNEL.findall(built[1])
    for architecture in build.ARCHITECTURES:
        names = [name for name, target, *_ in kernels if target == architecture]
        assert len(names) == 36
        assert sum(bool(TILED.search(name)) for name in names) == 21
    for name, target, *numbers in kernels:
        stack, stores, loads, registers = map(int, numbers)
        assert stack == stores == loads == 0, f"{name} spills on sm_{target}"
        # Two blocks of 128 threads fit a multiprocessor, or one of 384, which then share registers
        # out among themselves.
        assert registers <= (168 if "Wgmma" in name else 255)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_warpgroups_keep_what_they_were_promised(built):
    """The assembler warns where it ignores setmaxnreg or runs products one after the other."""
    assert "wgmma" in built[1]
    assert not re.search("setmaxnreg|serializ|C75[0-9][0-9]", built[1])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_library_loads_without_a_gpu(built):
    library = native.Library(built[0])
    for width in cuda.WIDTHS:
        for variant in (passes.WHOLE, passes.SPLIT, passes.WGMMA):
            assert library.circle_block(width, variant) in (64, 128)
            assert library.circle_parts(width, variant) in (1, 2)
            assert library.gradient_rows(width, variant) in (64, 128)
    assert library.circle_block(32, 0) < 0
    assert library.assign_sizes() == (64, 128, 32)
    if not torch.cuda.is_available():
        assert library._library.selftaught_trouble(0)


def test_compiler_of_cuda_home_comes_first(tmp_path, monkeypatch):
    compiler = tmp_path / "bin" / "nvcc"
    compiler.parent.mkdir()
    compiler.write_text("#!/bin/sh\nexit 7\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert build.find_nvcc() == str(compiler)
    output = tmp_path / "library.so"
    output.write_text("kept")
    monkeypatch.setattr(build, "LIBRARY", output)
    assert build.main([]) == 3
    assert output.read_text() == "kept" and sorted(p.name for p in tmp_path.iterdir()) == [
        "bin",
        "library.so",
    ]


def test_what_cannot_be_built_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="nvcc"):
        build.build(tmp_path / "library.so")
    monkeypatch.setattr(build, "SOURCE", tmp_path / "absent.cu")
    with pytest.raises(InputError, match="checkout"):
        build.build(tmp_path / "library.so")
    assert build.main([]) == 2
    assert "checkout" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"device": torch.device("cpu")}, "cuda only"),
        ({"op": "mix"}, "not part"),
        ({"dtype": torch.float64}, "float64"),
        ({"width": 257}, "up to 256"),
        ({"op": "nearest_center", "width": 4097}, "up to 4096"),
        ({"op": "mad", "width": 4096}, "was not built"),
        ({}, "was not built"),
    ],
)
def test_refusals(change, reason, monkeypatch, tmp_path):
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "absent.so")
    native.load.cache_clear()
    request = {
        "op": "ntxent",
        "device": torch.device("cuda", 0),
        "dtype": torch.float32,
        "width": 128,
    }
    try:
        assert reason in cuda.refusal(Request(**(request | change)))
    finally:
        native.load.cache_clear()


def test_library_of_another_time_is_refused(tmp_path, monkeypatch):
    (tmp_path / "old.so").write_bytes(b"no library")
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "old.so")
    native.load.cache_clear()
    try:
        assert "cannot be loaded" in str(native.load())
    finally:
        native.load.cache_clear()
