"""The ops in C++ for the CPU, on the native library."""

from selftaught.kernels import native
from selftaught.kernels.backend import Backend, Request
from selftaught.kernels.cpp.spheres import CppSpheres
from selftaught.kernels.cpp.tiles import TILES
from selftaught.kernels.cpp.views import CppLosses


def refusal(request: Request) -> str:
    """Refuses other devices, and everything without the library."""
    return native.reason() if request.device.type == "cpu" else "runs on cpu only"


BACKEND = Backend(tiles=TILES, losses=CppLosses(TILES), spheres=CppSpheres(), refusal=refusal)
