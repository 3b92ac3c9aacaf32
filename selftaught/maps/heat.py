"""Where an image's score comes from: raw heat (B, S, S), in the unit of the score.

All three ask what the score would be without a place, and agree on what stands there instead: the
image's local mean, which keeps exposure and outline but no detail.
"""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selftaught.errors import InputError
from selftaught.models.encoder import Encoder

Method = Literal["occlusion", "gradient", "cam"]
METHODS: tuple[Method, ...] = get_args(Method)
BEST: Method = "cam"  # of those, over both models of docs/maps.md
ALWAYS: Method = "occlusion"  # explains any score
# Images (B, 1, S, S), and masks like them or None -> scores (B,).
Score = Callable[[Tensor, Tensor | None], Tensor]

PATCH = 1 / 8  # of S: side of what is hidden at a time
STEPS = 8  # of the integral of gradients
LEAST_PLACES = (
    7  # along a side of the features that `cam` weighs: as many as at 224 px before a pool
)


def local_mean(images: Tensor, patch: float) -> Tensor:
    """Images (B, 1, S, S) without detail finer than about a patch of `patch` pixels.

    What lies outside the picture, all 0 up to an edge of the view, stays and counts for nothing.
    """
    inside = frame(images)
    mean = _blur(images, patch) / _blur(inside, patch).clamp_min(1e-6)
    return mean * inside


def frame(images: Tensor) -> Tensor:
    """1 in the smallest upright rectangle that holds all that is not 0, like images."""
    shown = images != 0
    rows, columns = shown.any(3, keepdim=True), shown.any(2, keepdim=True)

    def between(line: Tensor, dim: int) -> Tensor:
        before, after = line.cummax(dim).values, line.flip(dim).cummax(dim).values.flip(dim)
        return before & after

    return (between(rows, 2) & between(columns, 3)).to(images)


def occlusion(score: Score, images: Tensor, masks: Tensor | None, batch: int) -> Tensor:
    """How far the score falls where a patch shows its local mean (Zeiler and Fergus, 2014).

    Patches overlap by half and fade towards their edges, so that no edge of ours is seen.

    Args:
        score: of images.
        images: (B, 1, S, S).
        masks: like images, or None.
        batch: images scored at a time.
    """
    size = images.shape[-1]
    fill = local_mean(images, size * PATCH)
    rows = windows(size, size * PATCH).to(images)
    count, whole = len(rows), score(images, masks)
    heat = images.new_zeros(len(images), size, size)
    for number, image in enumerate(images):
        inside = (image[0] != fill[number, 0]).to(images)
        touched = (rows @ inside @ rows.T).flatten().nonzero()[:, 0]
        for some in touched.split(batch):
            shares = rows[some // count, :, None] * rows[some % count, None, :]
            hidden = torch.lerp(image, fill[number], shares[:, None])
            regions = None if masks is None else masks[number].expand(len(some), -1, -1, -1)
            drops = whole[number] - score(hidden, regions)
            heat[number] += torch.einsum("p,phw->hw", drops.to(heat), shares)
    total = rows.sum(0)
    return heat / (total[:, None] * total)


def windows(size: int, patch: float) -> Tensor:
    """Windows (P, S) in [0, 1] of a side of S pixels, half a patch apart, that cover all of it."""
    count = max(1, math.ceil(2 * size / patch))
    centers = (torch.arange(count, device="cpu") + 0.5) * (size / count)
    distance = (torch.arange(size, device="cpu") + 0.5 - centers[:, None]).abs() / patch
    return torch.cos(math.pi * distance.clamp_max(0.5)).clamp_min(0)


def gradient(score: Score, images: Tensor, masks: Tensor | None, batch: int) -> Tensor:
    """Integrated gradients from the local mean to the image (Sundararajan et al., 2017), smoothed.

    To first order it is `occlusion` of every patch at once. Arguments as there.

    Raises:
        InputError: the score has no gradient.
    """
    size = images.shape[-1]
    patch = size * PATCH
    fill = local_mean(images, patch)
    total = torch.zeros_like(images)
    for step in range(STEPS):
        share = (step + 0.5) / STEPS
        at = torch.lerp(fill, images, share).requires_grad_()
        total += _slope(score(at, masks), at)
    return _blur((images - fill) * total / STEPS, patch / 4)[:, 0]


def cam(
    score: Score, images: Tensor, masks: Tensor | None, batch: int, *, scorer: nn.Module
) -> Tensor:
    """Features of the encoder where they raise the score (LayerCAM, Jiang et al., 2021).

    Of the deepest features that still have `LEAST_PLACES` places along a side.

    Raises:
        InputError: the scorer has no encoder with places, or the score no gradient.
    """
    size = images.shape[-1]
    # The encoder's weights are held still: without this, nothing would have a gradient.
    at = images.detach().requires_grad_()
    with _features(scorer) as seen:
        result = score(at, masks)
    fine = [one for one in seen if min(one.shape[-2:]) >= min(LEAST_PLACES, size)]
    if not fine:
        raise InputError("method cam: the scorer has no encoder with places; allowed: occlusion")
    features = fine[-1]
    heat = (features * _slope(result, features).clamp_min(0)).sum(1, keepdim=True)
    if len(heat) > len(images):  # an encoder that sees mirror images too
        heat = heat[: len(images)] + heat[len(images) :].flip(-1)
    return F.interpolate(heat.detach(), (size, size), mode="bilinear")[:, 0]


def raw_heat(
    method: Method,
    scorer: nn.Module,
    score: Score,
    images: Tensor,
    masks: Tensor | None = None,
    batch: int = 64,
) -> Tensor:
    """Heat (B, S, S) >= 0 by a method, in units of the score that differ between methods.

    Args:
        method: of `METHODS`.
        scorer: the network that `score` runs.
        score: of images; with a gradient for all methods but occlusion.
        images: (B, 1, S, S) network input.
        masks: like images, or None.
        batch: images scored at a time.

    Raises:
        InputError: the method cannot explain this score.
    """
    if method == "occlusion":
        heat = occlusion(score, images, masks, batch)
    elif method == "gradient":
        heat = gradient(score, images, masks, batch)
    else:
        heat = cam(score, images, masks, batch, scorer=scorer)
    return heat.clamp_min(0)  # what lowers a score is no finding


def _slope(score: Tensor, at: Tensor) -> Tensor:
    if not score.requires_grad:
        raise InputError("the score has no gradient; allowed: method occlusion")
    return torch.autograd.grad(score.sum(), at)[0].detach()


@contextmanager
def _features(scorer: nn.Module) -> Iterator[list[Tensor]]:
    """Feature maps (B, C, h, w) of the scorer's first encoder, in the order they are computed."""
    encoder = next((one for one in scorer.modules() if isinstance(one, Encoder)), None)
    seen: list[Tensor] = []
    thread = threading.get_ident()

    def keep(_: nn.Module, __: object, output: object) -> None:
        # Another thread may score with the same network.
        if threading.get_ident() == thread and isinstance(output, Tensor) and output.ndim == 4:
            seen.append(output)

    parts = [] if encoder is None else list(encoder.layers.modules())
    parts = [one for one in parts if not isinstance(one, torch.jit.ScriptModule)]
    hooks = [one.register_forward_hook(keep) for one in parts]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (B, 1, S, S), edges repeated."""
    reach = min(math.ceil(3 * sigma), images.shape[-1] - 1)
    offsets = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma).square())
    kernel = kernel / kernel.sum()
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
