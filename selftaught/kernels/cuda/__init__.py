"""The ops in CUDA C++: sources in `csrc/cuda`, made into a library by `build`.

The environment variable SELFTAUGHT_CUDA_PATH chooses how products of the precision "fp16" (and
"bf16") are computed: "mma", the default, by the instructions of every chip from sm_80 on; "wgmma",
on compute capability 9.0 only, by warpgroups and the copy engine of sm_90a. The second has been
checked in an emulation and by the compiler but not yet run or timed on a GPU, so it is off. The
precision "fp32" always takes "mma".
"""

from functools import cache

import torch

from selftaught.kernels.contrastive import Contrastive
from selftaught.kernels.cuda import library
from selftaught.kernels.cuda.passes import WIDTHS
from selftaught.kernels.cuda.spheres import WIDEST, CudaSpheres
from selftaught.kernels.cuda.tiles import TILES
from selftaught.kernels.dispatch import ABSENT, Request

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

MOST_WIDE = {
    **dict.fromkeys(("ntxent", "supcon", "info_nce"), WIDTHS[-1]),
    **dict.fromkeys(("nearest_center", "mad"), WIDEST),
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OLDEST = (8, 0)

_losses = Contrastive(TILES)
ntxent, ntxent_backward = _losses.ntxent, _losses.ntxent_backward
supcon, supcon_backward = _losses.supcon, _losses.supcon_backward
info_nce, info_nce_backward = _losses.info_nce, _losses.info_nce_backward
_spheres = CudaSpheres()
nearest_center, nearest_center_counts = _spheres.nearest_center, _spheres.nearest_center_counts
nearest_center_backward = _spheres.nearest_center_backward
mad, mad_backward = _spheres.mad, _spheres.mad_backward


def refusal(request: Request) -> str:
    """Refuses other devices, other ops, float64, wide embeddings, and all without the library."""
    if request.device.type != "cuda":
        return "runs on cuda only"
    if request.op not in MOST_WIDE:
        return ABSENT
    if request.dtype not in DTYPES:
        return f"computes in float32, not {request.dtype}"
    if request.width > MOST_WIDE[request.op]:
        return f"embeddings may be up to {MOST_WIDE[request.op]} wide, not {request.width}"
    found = library.load()
    return found if isinstance(found, str) else _trouble(found, request.device)


@cache
def _trouble(found: library.Library, device: torch.device) -> str:
    if torch.cuda.get_device_capability(device) < OLDEST:
        return f"needs compute capability {OLDEST[0]}.{OLDEST[1]}"
    return found.trouble(device)
