"""selftaught: finds abnormal radiographs with almost no labels.

Importing it loads nothing heavy; `Detector` and `__version__` are resolved on first use.
"""

from typing import Any

__all__ = ["Detector", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Detector":
        from selftaught.detector import Detector

        return Detector
    raise AttributeError(f"module 'selftaught' has no attribute {name!r}")
