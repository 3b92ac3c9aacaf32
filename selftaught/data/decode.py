"""`read_grey`, where it stood before image files had a folder of their own."""

from selftaught.data.images.decode import read_grey

__all__ = ["read_grey"]
