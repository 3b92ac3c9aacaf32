"""selftaught: finds abnormal radiographs with almost no labels.

Importing it loads nothing heavy; `Detector` and `__version__` are resolved on first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selftaught.detector import Detector

__all__ = ["Detector", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Detector":
        try:
            from selftaught.detector import Detector
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"Detector needs the package {error.name}; install it by: "
                "pip install selftaught[train]",
                name=error.name,
            ) from error
        return Detector
    raise AttributeError(f"module 'selftaught' has no attribute {name!r}")
