"""What tests in several folders ask for."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent
WHOLE_SYSTEM = (HERE, HERE / "faults", HERE / "launch", HERE / "methods")
LONG = {
    "training/test_engines.py",
    "kernels/test_cuda_nearest_center.py",
    "kernels/test_cuda_emulated.py",
    "kernels/test_triton_tables.py",
    "data/prepare/test_job.py",
    "evaluation/test_report.py",
}


def pytest_collection_modifyitems(items):
    """The longest files first: each is one process's work, and none may begin as the last one."""

    def short(item):
        long = item.path.parent in WHOLE_SYSTEM or item.path.relative_to(HERE).as_posix() in LONG
        return not long

    items.sort(key=short)


@pytest.fixture(scope="module")
def thin_encoder():
    """Every resnet18 of this process is a thin one, and its reports have empty pictures."""
    # Not above: xdist's first process, which imports this file too, needs no torchvision.
    from tests import thin

    with thin.patch():
        yield
