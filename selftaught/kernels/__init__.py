"""The accelerated ops: what they compute (`reference`), which backend runs (`dispatch`), `ops`."""

from selftaught.kernels.dispatch import BACKENDS, PRECISIONS, BackendRow, backend_table

__all__ = ["BACKENDS", "PRECISIONS", "BackendRow", "backend_table"]
