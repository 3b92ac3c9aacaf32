"""The Triton backend's nearest centre against float64; run by test_triton_tables.py."""

import pytest

from selftaught.kernels.triton import spheres
from tests.kernels.nearest_center_table import NearestCenterTable


class TestTriton(NearestCenterTable):
    passes = spheres.TritonSpheres()
    device = "cpu" if spheres.triton.knobs.runtime.interpret else "cuda"

    @pytest.fixture(autouse=True)
    def few_programs(self, monkeypatch):
        """The interpreter runs one program after the other; each takes several blocks of rows."""
        monkeypatch.setattr(spheres, "SPLITS", 8)
        monkeypatch.setattr(spheres, "processors", lambda device: 1)
