"""TIFF: every tag that says how to read samples is applied, or its file refused by name.

tifffile reads the tags. Pillow makes grey of what it knows exactly: up to 8 bits, and plain grey of
16; of the rest the samples are read as they are stored.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from selftaught.data.images import raster, tiff_samples, tiff_tags
from selftaught.data.images.limits import BadImage, not_read
from selftaught.data.images.tiff_tags import values

if TYPE_CHECKING:
    from tifffile import TiffPage

# It warns of what is refused below anyway, or does not matter.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

FAX = (2, 3, 4)
MIN_IS_WHITE, RGB, PALETTE = 0, 2, 3
ASSOCIATED, UNASSOCIATED = 1, 2
NARROW = 256  # a colour map whose entries are all below has 8 bits instead of 16


def header(path: Path) -> tuple[int, int]:
    """(height, width) of an upright TIFF, from its tags.

    Raises:
        BadImage: damaged, above 64 Mpx, of several frames, or of a kind that is not read.
    """
    with raster.reasons(path, "TIFF"), path.open("rb") as handle, _page(path, handle) as page:
        size = page.imagelength, page.imagewidth
        return size[::-1] if _turn(path, page) >= 5 else size


def read(path: Path) -> np.ndarray:
    """Decode a TIFF completely.

    Returns:
        (H, W) uint8 (up to 8 bits a sample) or uint16.

    Raises:
        BadImage: as `header`; also truncated, or samples outside 0 to 65535.
    """
    with raster.reasons(path, "TIFF"), path.open("rb") as handle, _page(path, handle) as page:
        tiff_tags.check_data(path, page)
        if page.compression in FAX:
            tiff_samples.check_fax(path, page)
        if _known_to_pillow(page):
            grey = raster.undisturbed(lambda: _by_pillow(path, handle, page))
            if grey is not None:
                return grey
        return raster.upright(_by_samples(path, page), _turn(path, page))


def stated_bits(path: Path) -> int | None:
    """Bits of a sample, where the file states less than the array that `read` gives has."""
    with raster.reasons(path, "TIFF"), path.open("rb") as handle, _page(path, handle) as page:
        bits = max(values(page, "BitsPerSample", (1,)))
        return bits if 8 < bits < 16 else None


@contextmanager
def _page(path: Path, handle: IO[bytes]) -> Iterator["TiffPage"]:
    """The image of a file, with its tags checked."""
    from tifffile import TiffFile, TiffFileError

    try:
        opened = TiffFile(handle)
    except TypeError as error:
        raise not_read(path, f"a TIFF with tags of an unusual form ({error})") from error
    except (TiffFileError, ValueError, IndexError) as error:
        raise ValueError(f"cannot identify image file: {error}") from error
    with opened:
        page = _image(path, opened)
        tiff_tags.check(path, page)
        yield page


def _image(path: Path, opened: Any) -> "TiffPage":
    """The only image that is no reduced copy of another."""
    if not len(opened.pages):
        raise ValueError("cannot identify image file: no pages")
    whole = []
    for page in opened.pages:
        kind = values(page, "NewSubfileType", (0,))[0]
        if kind & 4:
            raise not_read(path, "a TIFF with a transparency mask beside its image")
        if not kind & 1 and page.subfiletype != 1:
            whole.append(page)
        if len(whole) > 1:
            break
    if not whole:
        raise not_read(path, "a TIFF that holds only a reduced copy of its image")
    frames = len(opened.pages) if len(whole) > 1 else _hidden_frames(opened, whole[0])
    if frames > 1:
        raise BadImage(path, f"holds {frames} frames; allowed: one image per file")
    return whole[0]


def _hidden_frames(opened: Any, page: "TiffPage") -> int:
    """Frames that follow an image without tags of their own, as some programs write them."""
    images = (opened.imagej_metadata or {}).get("images", 1) if opened.is_imagej else 1
    planes = page.tags[33629].count if opened.is_stk and 33629 in page.tags else 1
    depth = values(page, "ImageDepth", (1,))[0]
    return max(value if isinstance(value, int) else 1 for value in (images, planes, depth))


def _turn(path: Path, page: "TiffPage") -> int:
    return raster.valid_turn(path, values(page, "Orientation", (1,))[0])


def _known_to_pillow(page: "TiffPage") -> bool:
    """Whether Pillow may be tried: up to 8 bits, and plain grey that it does not garble."""
    swapped = tiff_tags.signed(page) and page.parent.byteorder == ">"
    plain = page.samplesperpixel == 1 and page.planarconfig == 1 and not swapped
    return plain or max(values(page, "BitsPerSample", (1,))) <= 8


def _by_pillow(path: Path, handle: IO[bytes], page: "TiffPage") -> np.ndarray | None:
    """Decode by Pillow, which turns it upright; None: it does not know this kind."""
    from PIL import UnidentifiedImageError

    try:
        with raster.opened(path, "TIFF", handle) as image:
            image.seek(page.index)
            image.load()
            if image.mode == "P":
                colors = np.reshape(page.tags.valueof("ColorMap"), (3, -1)).T
                if colors.max() < NARROW:
                    image.putpalette(colors.astype(np.uint8).tobytes())
            grey = raster.grey(path, image)
    except (UnidentifiedImageError, SyntaxError):
        return None
    except ValueError as error:
        if "unknown raw mode" not in str(error):
            raise
        return None
    if tiff_tags.signed(page) and grey.dtype == np.uint8 and grey.max() > 127:
        raster.sixteen_bits(path, grey.view(np.int8))
    if grey.dtype == np.uint16 and page.photometric == MIN_IS_WHITE:
        # Pillow inverts white-is-zero files of up to 8 bits, but not these.
        grey = np.uint16(2 ** max(values(page, "BitsPerSample", (1,))) - 1) - grey
    return grey


def _by_samples(path: Path, page: "TiffPage") -> np.ndarray:
    """Decode samples as they are stored, and make grey of them."""
    bits, photometric = max(values(page, "BitsPerSample", (1,))), page.photometric
    colors = {0: 1, 1: 1, RGB: 3}.get(photometric)
    if colors is None or bits not in (8, 16, 32, 64):
        name = getattr(photometric, "name", photometric)
        raise not_read(path, f"a TIFF of {page.samplesperpixel} x {bits} bits, {name}")
    samples = tiff_samples.samples(path, page)
    if photometric == MIN_IS_WHITE:
        if samples.dtype.kind != "u":
            raise not_read(path, "a TIFF of signed samples of which the least is white")
        samples[..., 0] = np.iinfo(samples.dtype).max - samples[..., 0]
    if samples.dtype not in (np.uint8, np.uint16):
        samples = raster.sixteen_bits(path, samples)
        samples = samples.astype(np.uint8 if bits == 8 else np.uint16)
    extra = values(page, "ExtraSamples", ())
    # Without a word about it, a fourth sample is alpha: so do Pillow and others.
    alpha = extra.index(UNASSOCIATED) if UNASSOCIATED in extra else None
    if not extra and samples.shape[2] == colors + 1:
        alpha = 0
    chosen = samples[..., :colors]
    if alpha is not None:
        chosen = np.concatenate((chosen, samples[..., colors + alpha, None]), axis=2)
    return _grey(chosen, colors)


def _grey(samples: np.ndarray, colors: int) -> np.ndarray:
    """(H, W) of (H, W, C) or, with alpha, (H, W, C + 1)."""
    from PIL import Image

    top = np.iinfo(samples.dtype).max
    if colors == 3 and samples.dtype == np.uint16:
        return raster.deep_luma(np.concatenate((samples[..., 2::-1], samples[..., 3:]), axis=2))
    if colors == 3:
        grey = np.array(Image.fromarray(np.ascontiguousarray(samples[..., :3])).convert("L"))
    else:
        grey = np.array(samples[..., 0])
    if samples.shape[2] > colors:
        grey = np.rint(grey * (samples[..., colors] / np.float64(top))).astype(grey.dtype)
    return grey
