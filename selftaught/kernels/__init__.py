"""The accelerated ops: what they compute (`reference`), which backend runs (`dispatch`), `ops`."""

from selftaught.host import survive_forks
from selftaught.kernels.dispatch import BACKENDS, PRECISIONS, BackendRow, backend_table

__all__ = ["BACKENDS", "PRECISIONS", "BackendRow", "backend_table"]

survive_forks()
