"""What tests in several folders ask for."""

from pathlib import Path

import pytest

from tests import thin

HERE = Path(__file__).parent
WHOLE_SYSTEM = (HERE, HERE / "faults", HERE / "launch", HERE / "methods")


def pytest_collection_modifyitems(items):
    """Tests of the whole system first: a file is one process's work, and theirs are the longest."""
    items.sort(key=lambda item: item.path.parent not in WHOLE_SYSTEM)


@pytest.fixture(scope="module")
def thin_encoder():
    """Every resnet18 of this process is a thin one."""
    with thin.patch():
        yield
