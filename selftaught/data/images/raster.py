"""PNG, JPEG and TIFF through Pillow, in its strict mode, to grey."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from selftaught.data.images.limits import BadImage, check_size

if TYPE_CHECKING:
    from PIL.Image import Image

# MPO is what phones call a JPEG with a preview behind it; its first picture is the image.
PILLOW_FORMATS = {"PNG": ("PNG",), "JPEG": ("JPEG", "MPO"), "TIFF": ("TIFF",)}
ORIENTATION = 0x0112
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262
MIN_IS_WHITE = 0
LUMA_RGB = (0.299, 0.587, 0.114)


def header(path: Path, kind: str) -> tuple[int, int]:
    """(height, width) of an upright image, from its header; refuses what is too large.

    Args:
        path: the file.
        kind: "PNG", "JPEG" or "TIFF".

    Raises:
        BadImage: the header is damaged, or the image above 64 Mpx or of several frames.
    """
    try:
        with _open(path, kind) as image:
            width, height = image.size
            return (width, height) if _orientation(image) >= 5 else (height, width)
    except Exception as error:
        raise _reason(path, kind, error) from error


def read(path: Path, kind: str, *, deep_color: bool = False) -> np.ndarray:
    """Decode an image completely.

    Args:
        path: the file.
        kind: "PNG", "JPEG" or "TIFF".
        deep_color: colour of 16 bits a sample, which Pillow would cut to 8 bits.

    Returns:
        (H, W) uint8 or uint16.

    Raises:
        BadImage: truncated, damaged, too large, several frames, or samples that are not
            unsigned integers of at most 16 bits.
    """
    try:
        with _open(path, kind) as image:
            turn = _orientation(image)
            if image.mode == "RGB" and kind == "JPEG":
                image.draft("L", image.size)
            bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, ())
            image.load()
            deep_color |= len(bits) > 1 and max(bits) > 8
            grey = _deep_grey(path) if deep_color else _grey(path, image)
            return _upright(grey, turn)
    except Exception as error:
        raise _reason(path, kind, error) from error


@contextmanager
def _open(path: Path, kind: str) -> Iterator["Image"]:
    """Open with the header read and checked; pixels are not touched yet."""
    from PIL import Image

    # Not by name: Pillow would map the file, and garble plain TIFFs that are to be turned by 90.
    with path.open("rb") as handle, Image.open(handle, formats=PILLOW_FORMATS[kind]) as image:
        check_size(path, image.height, image.width)
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":
            raise BadImage(path, f"holds {frames} frames; allowed: one image per file")
        yield image


def _orientation(image: "Image") -> int:
    """The EXIF orientation 1-8 that is still to be applied."""
    from PIL import Image

    if image.format == "TIFF":
        return 1  # Pillow applies it while loading, and its size says so already.
    if image.format == "PNG":
        # getexif() of a PNG would decode the pixels; only what precedes them counts.
        exif = Image.Exif()
        exif.load(image.info.get("exif", b""))
    else:
        exif = image.getexif()
    turn = exif.get(ORIENTATION, 1)
    return turn if isinstance(turn, int) and 1 <= turn <= 8 else 1


def _upright(grey: np.ndarray, turn: int) -> np.ndarray:
    if turn in (5, 6, 7, 8):
        grey = grey.T
    if turn in (2, 3, 6, 7):
        grey = grey[:, ::-1]
    if turn in (3, 4, 7, 8):
        grey = grey[::-1]
    return grey


def _grey(path: Path, image: "Image") -> np.ndarray:
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode == "I":
        return _sixteen_bits(path, image)
    if image.mode == "F":
        raise BadImage(path, "has floating point samples; allowed: 8 or 16 bits, unsigned")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image.convert("RGBA"))
    if image.mode not in ("L", "1"):
        image = image.convert("RGB")
    return np.array(image.convert("L"))


def _sixteen_bits(path: Path, image: "Image") -> np.ndarray:
    samples = np.asarray(image)
    lowest, highest = int(samples.min()), int(samples.max())
    if lowest < 0 or highest > 65535:
        raise BadImage(path, f"has samples from {lowest} to {highest}; allowed: 0 to 65535")
    grey = samples.astype(np.uint16)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[grey == transparent] = 0
    tags = getattr(image, "tag_v2", {})
    # Pillow inverts white-is-zero files of up to 8 bits, but not these.
    if tags.get(PHOTOMETRIC) == MIN_IS_WHITE:
        grey = np.uint16(2 ** max(tags.get(BITS_PER_SAMPLE, (16,))) - 1) - grey
    return grey


def _deep_grey(path: Path) -> np.ndarray:
    """16-bit colour through OpenCV, after Pillow has read the same file without complaint."""
    import cv2

    image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype != np.uint16 or image.ndim != 3:
        raise BadImage(path, "has an unusual 16-bit colour layout; allowed: grey or 8-bit colour")
    red, green, blue = LUMA_RGB
    luma = image[..., :3].astype(np.float32) @ np.array([blue, green, red], np.float32)
    if image.shape[2] == 4:
        luma *= image[..., 3] / np.float32(65535)
    return np.rint(luma).astype(np.uint16)


def _reason(path: Path, kind: str, error: Exception) -> Exception:
    """The error to raise for what Pillow raised; it has no common class for a bad file."""
    from PIL import Image

    if isinstance(error, BadImage | MemoryError) or getattr(error, "errno", None) is not None:
        return error
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return BadImage(path, f"{kind} header claims a size far above the allowed 64 Mpx")
    text = str(error)
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return BadImage(path, f"truncated {kind}: {text or 'the file ends too early'}")
    if "cannot identify" in text:
        return BadImage(path, f"truncated or damaged {kind}: the header cannot be read")
    return BadImage(path, f"damaged {kind}: {text or type(error).__name__}")
