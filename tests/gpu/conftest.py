"""Everything here needs a CUDA device; `make gpu` runs it."""

import pytest
import torch


def pytest_collection_modifyitems(items):
    for item in items:
        if "/gpu/" in item.nodeid or item.nodeid.startswith("tests/gpu"):
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
