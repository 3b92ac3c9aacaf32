"""What tests in several folders ask for."""

import pytest

from tests import thin


@pytest.fixture(scope="module")
def thin_encoder():
    """Every resnet18 of this process is a thin one."""
    with thin.patch():
        yield
