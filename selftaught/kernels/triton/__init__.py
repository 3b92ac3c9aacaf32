"""The ops as kernels written in Triton, for NVIDIA GPUs."""

import torch
import triton

if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 6):
    # As older torches bring; the kernels below would fail while they are defined.
    raise ImportError(f"Triton is {triton.__version__}; allowed: 3.6 or newer")

from selftaught.kernels.backend import ABSENT, Backend, Request
from selftaught.kernels.triton.spheres import TritonSpheres
from selftaught.kernels.triton.tiles import TILES
from selftaught.kernels.triton.views import WIDEST, ViewLosses

OPS: tuple[str, ...] = ("ntxent", "supcon", "info_nce", "nearest_center", "mad")
CONTRASTIVE = OPS[:3]
VERSION = tuple(map(int, triton.__version__.split(".")[:2]))
# Oldest GPUs with the instructions that the kernels are compiled and checked for.
OLDEST = (8, 0)


def refusal(request: Request) -> str:
    """Refuses other devices, float64 and ops that are not written.

    On the CPU the ops run in Triton's interpreter where TRITON_INTERPRET=1.
    """
    if request.op not in OPS:
        return ABSENT
    interpreted = triton.knobs.runtime.interpret and request.device.type == "cpu"
    if request.device.type != "cuda" and not interpreted:
        return "runs on cuda only"
    if request.dtype == torch.float64:
        return "float64 is not supported"
    if request.device.type == "cuda":
        capability = torch.cuda.get_device_capability(request.device)
        if capability < OLDEST:
            return f"needs compute capability {OLDEST[0]}.{OLDEST[1]}"
        # Triton 3.6 ends in an assertion of its compiler there (`kernels.assign`); 3.8 does not.
        if request.op not in CONTRASTIVE and capability[0] == 10 and VERSION < (3, 8):
            return f"needs Triton 3.8 on compute capability 10, and this is {triton.__version__}"
    if request.op in CONTRASTIVE and request.width > WIDEST:
        return f"embeddings may be up to {WIDEST} wide, not {request.width}"
    return ""


BACKEND = Backend(tiles=TILES, losses=ViewLosses(TILES), spheres=TritonSpheres(), refusal=refusal)
