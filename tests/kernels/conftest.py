"""Where the CUDA kernels run in tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from selftaught.kernels.cuda import library as native
from tests.kernels.emulation import Machine


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the emulated library, which is compiled once for all processes of the tests."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def machine(
    request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Machine]:
    """The emulation, and a GPU where there is one; the test fails on bank conflicts."""
    if request.param == "gpu" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    machine = Machine(folder if request.param == "emulated" else None)
    monkeypatch.setattr(native, "loaded", lambda: machine.library)
    before = machine.conflicts()
    machine.seed(0)
    yield machine
    assert machine.conflicts() == before, "loads met bank conflicts"
