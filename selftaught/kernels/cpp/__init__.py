"""The ops in C++ for the CPU, on the native library."""

from selftaught.kernels import native
from selftaught.kernels.dispatch import ABSENT, Request

__all__ = ["refusal"]

OPS: tuple[str, ...] = ()


def refusal(request: Request) -> str:
    """Refuses other devices, ops that are not written, and everything without the library."""
    if request.device.type != "cpu":
        return "runs on cpu only"
    if request.op not in OPS:
        return ABSENT
    return native.reason()
