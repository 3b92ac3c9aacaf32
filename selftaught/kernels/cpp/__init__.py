"""The ops in C++ for the CPU, on the native library."""

from selftaught.kernels import native
from selftaught.kernels.contrastive import Contrastive
from selftaught.kernels.cpp.spheres import (
    mad,
    mad_backward,
    nearest_center,
    nearest_center_backward,
    nearest_center_counts,
)
from selftaught.kernels.cpp.tiles import TILES
from selftaught.kernels.dispatch import Request

__all__ = [
    "TILES",
    "info_nce",
    "info_nce_backward",
    "mad",
    "mad_backward",
    "nearest_center",
    "nearest_center_backward",
    "nearest_center_counts",
    "ntxent",
    "ntxent_backward",
    "refusal",
    "supcon",
    "supcon_backward",
]

_losses = Contrastive(TILES)
ntxent, ntxent_backward = _losses.ntxent, _losses.ntxent_backward
supcon, supcon_backward = _losses.supcon, _losses.supcon_backward
info_nce, info_nce_backward = _losses.info_nce, _losses.info_nce_backward


def refusal(request: Request) -> str:
    """Refuses other devices, and everything without the library."""
    return native.reason() if request.device.type == "cpu" else "runs on cpu only"
