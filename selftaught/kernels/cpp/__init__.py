"""The ops in C++ for the CPU, on the native library."""

from selftaught.kernels import native
from selftaught.kernels.cpp.spheres import (
    mad,
    mad_backward,
    nearest_center,
    nearest_center_backward,
    nearest_center_counts,
)
from selftaught.kernels.dispatch import ABSENT, Request

__all__ = [
    "mad",
    "mad_backward",
    "nearest_center",
    "nearest_center_backward",
    "nearest_center_counts",
    "refusal",
]

OPS: tuple[str, ...] = ("nearest_center", "mad")


def refusal(request: Request) -> str:
    """Refuses other devices, ops that are not written, and everything without the library."""
    if request.device.type != "cpu":
        return "runs on cpu only"
    if request.op not in OPS:
        return ABSENT
    return native.reason()
