"""One sample before augmentation: decoded, checked against its mask, contrast stretched."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from selftaught.data.images.contrast import autocontrast, stretch
from selftaught.data.images.decode import read_grey
from selftaught.data.images.limits import BadImage
from selftaught.data.images.masks import read_mask
from selftaught.data.images.pack import locate


class Sample(NamedTuple):
    """What an executor renders views from.

    Attributes:
        image: (H, W) uint8 or uint16.
        mask: (H, W) uint8, 0 to 255, or None for all of the frame.
        framed: `mask` is but the image's frame, by which no view is multiplied.
    """

    image: np.ndarray
    mask: np.ndarray | None
    framed: bool = False

    @property
    def nbytes(self) -> int:
        """Memory of both arrays."""
        return self.image.nbytes + (0 if self.mask is None else self.mask.nbytes)


# Image and mask of a sample that is not as its files are, such as a film that is prepared only
# now; None: the files themselves. Called from many threads; raises `BadImage`.
Made = Callable[[int], Sample | None]


def refuse_flat(path: Path, image: np.ndarray) -> None:
    """Refuse an image on which nothing can be seen: of one pixel, or of one grey level.

    Raises:
        BadImage: all of its pixels are equal.
    """
    if int(image.min()) == int(image.max()):
        size = f"{image.shape[1]} x {image.shape[0]} pixels"
        raise BadImage(path, f"shows nothing: {size}, all of level {int(image.max())}")


def load(path: Path, mask: Path | None, *, cutoff: float) -> Sample:
    """Read an image and its mask at the image's own size, from a pack where they lie in one.

    Args:
        path: the image file.
        mask: its body-part mask, or None.
        cutoff: per cent of the pixels cut at each end of the histogram.

    Raises:
        BadImage: as `read_grey`; also a mask of another size than the image, or an empty mask.
    """
    packed = locate(path)
    image = read_grey(path) if packed is None else packed.pack.image(packed.slot)
    region = None if mask is None else read_mask(mask, path, image.shape)
    if packed is not None and cutoff == packed.pack.cutoff:
        return Sample(stretch(image, *packed.pack.limits(packed.slot)), region)
    return Sample(autocontrast(image, cutoff), region)
