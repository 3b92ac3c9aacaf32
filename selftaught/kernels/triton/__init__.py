"""The ops as kernels written in Triton, for NVIDIA GPUs."""

import torch

from selftaught.kernels.dispatch import ABSENT, Request
from selftaught.kernels.triton.spheres import (
    mad,
    mad_backward,
    nearest_center,
    nearest_center_backward,
    nearest_center_counts,
)

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
    """Refuses other devices, float64 and ops that are not written."""
    if request.device.type != "cuda":
        return "runs on cuda only"
    if request.op not in OPS:
        return ABSENT
    return "float64 is not supported" if request.dtype == torch.float64 else ""
