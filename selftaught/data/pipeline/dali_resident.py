"""A pack's images and masks in one block of device memory, so that steps read no host memory."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from selftaught.data.images.limits import BadImage
from selftaught.data.images.pack import ALIGNMENT, Packed, locate

# Of the device's free memory; the rest is for the model.
SHARE = 0.25


class Resident:
    """Copies on a device of all images of packs and their masks as bits.

    Args:
        images: where each sample's image is.
        masks: whether each sample has a mask to hold.
        device: where to.

    What cannot be read is left out: whoever asks the pack for it is told so.
    """

    def __init__(self, images: Sequence[Packed], masks: Sequence[bool], device: torch.device):
        self._frames = [_sizes(one, masked=True)[1] for one in images]
        pairs = [_sizes(one, masked) for one, masked in zip(images, masks, strict=True)]
        self._sizes = np.array(pairs, np.int64).reshape(-1)
        ends = np.cumsum(_aligned(self._sizes))
        self._starts = ends - _aligned(self._sizes)
        self._block = torch.empty(int(ends[-1]), dtype=torch.uint8, device=device)
        for sample, (one, masked) in enumerate(zip(images, masks, strict=True)):
            try:
                pixels = np.array(one.pack.image(one.slot)).reshape(-1).view(np.uint8)
            except BadImage:
                continue
            self._part(2 * sample).copy_(torch.from_numpy(pixels))
            mask = one.pack.mask(one.slot) if masked else None
            if mask is not None:
                self._part(2 * sample + 1).copy_(torch.from_numpy(np.packbits(mask > 0)))

    def image(self, sample: int) -> Tensor | np.ndarray:
        """(n,) uint8, the bytes of the image; an array if the device is the CPU."""
        return _fed(self._part(2 * sample))

    def mask(self, sample: int) -> Tensor | np.ndarray:
        """(m,) uint8, the bits of the mask; without a mask, all set."""
        bits = self._part(2 * sample + 1)
        return _fed(bits if len(bits) else bits.new_full((self._frames[sample],), 255))

    def _part(self, number: int) -> Tensor:
        start = int(self._starts[number])
        return self._block[start : start + int(self._sizes[number])]


def resident(
    images: Sequence[Packed | None], masks: Sequence[Path | None], device: torch.device, budget: int
) -> Resident | None:
    """Put a set on the device if all of it lies in packs and fits.

    Args:
        images: where each image lies in a pack, or None.
        masks: for each its mask or None.
        device: where to.
        budget: the most bytes to use.
    """
    inside = [one for one in images if one is not None]
    regions = [None if path is None else locate(path) for path in masks]
    # A mask of another image, or a file beside a pack, is possible; then the host reads them.
    matching = all(
        path is None or (region is not None and one is not None and region[:2] == one[:2])
        for path, region, one in zip(masks, regions, images, strict=True)
    )
    if not inside or len(inside) < len(images) or not matching:
        return None
    has_mask = [path is not None for path in masks]
    sizes = np.array([_sizes(*pair) for pair in zip(inside, has_mask, strict=True)], np.int64)
    if _aligned(sizes).sum() > budget:
        return None
    return Resident(inside, has_mask, device)


def free_bytes(device: torch.device) -> int:
    """What a resident set may take of a GPU's memory now."""
    return int(SHARE * torch.cuda.mem_get_info(device)[0])


def _fed(tensor: Tensor) -> Tensor | np.ndarray:
    """An array on the CPU: given a tensor, DALI asks CUDA for its stream even there."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def _sizes(one: Packed, masked: bool) -> tuple[int, int]:
    """Bytes of the image and of its mask."""
    record = one.pack.records[one.slot]
    pixels = int(record["height"]) * int(record["width"])
    return pixels * int(record["bits"]) // 8, -(-pixels // 8) if masked else 0


def _aligned(sizes: np.ndarray) -> np.ndarray:
    """Rounded up, so that 16-bit pixels start at whole words."""
    return -(-sizes // ALIGNMENT) * ALIGNMENT
