"""The ops in C++ for the CPU, on the native library."""

from selftaught.kernels import native
from selftaught.kernels.backend import Backend, Request
from selftaught.kernels.contrastive import Contrastive
from selftaught.kernels.cpp.spheres import CppSpheres
from selftaught.kernels.cpp.tiles import TILES


def refusal(request: Request) -> str:
    """Refuses other devices, and everything without the library."""
    return native.reason() if request.device.type == "cpu" else "runs on cpu only"


BACKEND = Backend(tiles=TILES, losses=Contrastive(TILES), spheres=CppSpheres(), refusal=refusal)
