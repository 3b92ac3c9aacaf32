"""PNG, JPEG and TIFF through Pillow to grey, whatever switches of Pillow the process has set."""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

import numpy as np

from selftaught.data.images.limits import BadImage, check_size
from selftaught.errors import MachineError

if TYPE_CHECKING:
    from PIL.Image import Exif, Image

Result = TypeVar("Result")

ORIENTATION = 0x0112
LUMA_BGR = (0.114, 0.587, 0.299)
SWITCHES = threading.Lock()


def header(path: Path, kind: str, stream: IO[bytes]) -> tuple[int, int]:
    """(height, width) of an upright image, from its header; refuses what is too large.

    Args:
        path: named in errors.
        kind: "PNG" or "JPEG".
        stream: the file.

    Raises:
        BadImage: an image above 64 Mpx, or an orientation that does not exist.
        Exception: whatever Pillow raises; `reasons` translates it.
    """

    def look() -> tuple[int, int]:
        with opened(path, kind, stream) as image:
            width, height = image.size
            return (width, height) if orientation(path, image) >= 5 else (height, width)

    return undisturbed(look)


def turn(path: Path, kind: str, stream: IO[bytes]) -> int:
    """The EXIF orientation, 1 to 8; arguments and errors as for `header`."""

    def look() -> int:
        with opened(path, kind, stream) as image:
            return orientation(path, image)

    return undisturbed(look)


def read(path: Path, kind: str, stream: IO[bytes], *, colors: int | None = None) -> np.ndarray:
    """Decode an image completely; other arguments and errors as for `header`.

    Args:
        path: named in errors.
        kind: "PNG" or "JPEG".
        stream: the file.
        colors: entries of its palette, if it has one.

    Returns:
        (H, W) uint8 or uint16.
    """

    def decode() -> np.ndarray:
        with opened(path, kind, stream) as image:
            way = orientation(path, image)
            if image.mode == "RGB" and kind == "JPEG":
                image.draft("L", image.size)
            image.load()
            if colors is not None and (highest := int(np.asarray(image).max())) >= colors:
                raise BadImage(path, f"damaged {kind}: color {highest} of a palette of {colors}")
            return upright(grey(path, image), way)

    return undisturbed(decode)


@contextmanager
def opened(path: Path, kind: str, stream: IO[bytes]) -> Iterator["Image"]:
    """An image with its header read and its size checked; pixels are not touched yet."""
    from PIL import Image

    stream.seek(0)
    # Not by name: Pillow would map the file, and garble plain TIFFs that are to be turned by 90.
    # A JPEG may come as "MPO": phones put a preview behind it. Its first picture is the image.
    with Image.open(stream, formats=(kind,)) as image:
        check_size(path, image.height, image.width)
        yield image


def undisturbed(call: Callable[[], Result]) -> Result:
    """What `call` gives; where a switch of this process stops Pillow, again with its own switches.

    Such are warnings that are turned into errors, and a limit on sizes other than ours.
    """
    from PIL import Image

    try:
        return call()
    except (Warning, Image.DecompressionBombError):
        pass
    with SWITCHES, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        most, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return call()
        finally:
            Image.MAX_IMAGE_PIXELS = most


@contextmanager
def reasons(path: Path, kind: str) -> Iterator[None]:
    """Turn what a decoder raises into one line; it has no common class for a bad file."""
    try:
        yield
    except Exception as error:
        if isinstance(error, BadImage | MachineError | MemoryError | ImportError):
            raise
        if getattr(error, "errno", None) is not None:
            raise
        text = str(error)
        if "truncated" in text.lower() or isinstance(error, EOFError):
            reason = f"truncated {kind}: {text or 'the file ends too early'}"
        elif "cannot identify" in text:
            reason = f"truncated or damaged {kind}: the header cannot be read"
        else:
            reason = f"damaged {kind}: {text or type(error).__name__}"
        raise BadImage(path, reason) from error


def orientation(path: Path, image: "Image") -> int:
    """The EXIF orientation 1-8 that is still to be applied to a PNG or JPEG."""
    from PIL import Image

    if image.format == "PNG":
        # getexif() of a PNG would decode the pixels.
        exif: Exif = Image.Exif()
        # What is no EXIF states nothing, as in a JPEG.
        with suppress(SyntaxError):
            exif.load(image.info.get("exif", b""))
    else:
        exif = image.getexif()
    return valid_turn(path, exif.get(ORIENTATION, 1))


def valid_turn(path: Path, way: object) -> int:
    """An orientation as it is stated, 1 to 8; 0 is what cameras write for unknown.

    Raises:
        BadImage: it is none.
    """
    if not isinstance(way, int) or not 0 <= way <= 8:
        raise BadImage(
            path, f"states orientation {way}; allowed: 1 to 8; save it again upright without"
        )
    return int(way) or 1


def upright(image: np.ndarray, way: int) -> np.ndarray:
    """Undo an EXIF orientation of (H, W)."""
    if way in (5, 6, 7, 8):
        image = image.T
    if way in (2, 3, 6, 7):
        image = image[:, ::-1]
    if way in (3, 4, 7, 8):
        image = image[::-1]
    return image


def grey(path: Path, image: "Image") -> np.ndarray:
    """(H, W) uint8 or uint16 of a decoded image; transparent becomes black.

    Raises:
        BadImage: samples outside 16 bits.
    """
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode == "I":
        deep = sixteen_bits(path, np.asarray(image))
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            deep[deep == transparent] = 0
        return deep
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image.convert("RGBA"))
    if image.mode not in ("L", "1"):
        image = image.convert("RGB")
    return np.array(image.convert("L"))


def sixteen_bits(path: Path, samples: np.ndarray) -> np.ndarray:
    """A new array of integer samples as uint16.

    Raises:
        BadImage: a sample is outside 0 to 65535.
    """
    lowest, highest = int(samples.min()), int(samples.max())
    if lowest < 0 or highest > 65535:
        raise BadImage(
            path,
            f"has samples from {lowest} to {highest}; allowed: 0 to 65535; shift or scale them "
            "and save it again",
        )
    return samples.astype(np.uint16)


def deep_luma(bgr: np.ndarray) -> np.ndarray:
    """Grey of colour with 16 bits a sample, which Pillow would cut to 8 bits.

    Args:
        bgr: (H, W, 3) uint16, or with alpha, not yet multiplied, (H, W, 4).

    Returns:
        (H, W) uint16.
    """
    luma = bgr[..., :3].astype(np.float32) @ np.array(LUMA_BGR, np.float32)
    if bgr.shape[2] == 4:
        luma *= bgr[..., 3] / np.float32(65535)
    return np.rint(luma).astype(np.uint16)
