"""The ops as eager PyTorch formulas: the specification every other backend is tested against.

Arithmetic is float32, float64 for float64 input, whatever `precision` says: it bounds how low a
backend may go. Every backward is written out and itself differentiable, to any order. A backward
takes the gradient of the forward's first output, the forward's arguments, its outputs, and which
inputs need a gradient.
"""

from selftaught.kernels.dispatch import Request
from selftaught.kernels.reference.contrastive import (
    info_nce,
    info_nce_backward,
    ntxent,
    ntxent_backward,
    supcon,
    supcon_backward,
)
from selftaught.kernels.reference.spheres import (
    mad,
    mad_backward,
    nearest_center,
    nearest_center_backward,
)
from selftaught.kernels.reference.tiles import TILES

__all__ = [
    "TILES",
    "info_nce",
    "info_nce_backward",
    "mad",
    "mad_backward",
    "nearest_center",
    "nearest_center_backward",
    "ntxent",
    "ntxent_backward",
    "refusal",
    "supcon",
    "supcon_backward",
]


def refusal(request: Request) -> str:
    """Nothing is refused."""
    del request
    return ""
