"""`selftaught verify`: whether an exported file is unaltered and scores here as it did there."""

from selftaught.export.runtime import main

__all__ = ["main"]
