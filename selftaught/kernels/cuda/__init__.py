"""The ops in CUDA C++: sources in `csrc/cuda`, made into a library by `build`.

The environment variable SELFTAUGHT_CUDA_PATH chooses how products of the precision "fp16" (and
"bf16") are computed: "mma", the default, by the instructions of every chip from sm_80 on; "wgmma",
on compute capability 9.0 only, by warpgroups and the copy engine of sm_90a. The second has been
checked in an emulation and by the compiler but not yet run or timed on a GPU, so it is off. The
precision "fp32" always takes "mma".
"""

from functools import cache

import torch

from selftaught.kernels.backend import ABSENT, Backend, Request
from selftaught.kernels.contrastive import Contrastive
from selftaught.kernels.cuda import library
from selftaught.kernels.cuda.passes import WIDTHS
from selftaught.kernels.cuda.spheres import WIDEST, CudaSpheres
from selftaught.kernels.cuda.tiles import TILES

MOST_WIDE = {
    **dict.fromkeys(("ntxent", "supcon", "info_nce"), WIDTHS[-1]),
    **dict.fromkeys(("nearest_center", "mad"), WIDEST),
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OLDEST = (8, 0)


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
    loaded = library.load()
    return loaded if isinstance(loaded, str) else _trouble(loaded, request.device)


@cache
def _trouble(loaded: library.Library, device: torch.device) -> str:
    if torch.cuda.get_device_capability(device) < OLDEST:
        return f"needs compute capability {OLDEST[0]}.{OLDEST[1]}"
    return loaded.trouble(device)


BACKEND = Backend(tiles=TILES, losses=Contrastive(TILES), spheres=CudaSpheres(), refusal=refusal)
