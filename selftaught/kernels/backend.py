"""What a backend is: the passes that the ops are made of, and which calls it refuses."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from selftaught.kernels.spheres import SphereOps, Spheres
from selftaught.kernels.tiles import Tiles

ABSENT = "not part of this installation"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a backend must know to accept or refuse a call.

    Attributes:
        op: one of `dispatch.OPS`; the backward of an op goes under the op's own name.
        device: device of the embeddings.
        dtype: dtype of the embeddings.
        width: embedding width D.
    """

    op: str
    device: torch.device
    dtype: torch.dtype
    width: int


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One backend; `BACKEND` of its package.

    Attributes:
        tiles: the passes of the contrastive losses.
        losses: has the contrastive ops and their backwards: `Contrastive(tiles)`, or formulas.
        spheres: the passes of the nearest centre.
        refusal: "" where it can serve a request, else the reason in words.
    """

    tiles: Tiles
    losses: Any
    spheres: Spheres
    refusal: Callable[[Request], str]

    def op(self, name: str) -> Callable[..., Any]:
        """The function of an op, or of its backward, with the arguments of its schema."""
        function = getattr(SphereOps(self.spheres), name, None)
        return function or getattr(self.losses, name)
