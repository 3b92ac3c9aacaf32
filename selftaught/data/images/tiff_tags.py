"""Which tags of a TIFF mean that it is not read, or cannot be right (TIFF 6.0, BigTIFF)."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from selftaught.data.images import jpeg
from selftaught.data.images.limits import BadImage, check_size, not_read

if TYPE_CHECKING:
    from tifffile import TiffPage

MOST_SAMPLES = 8
FORMATS = {3: "floating point", 4: "undefined", 5: "complex", 6: "complex floating point"}
# Grey with white or black as 0, RGB, palette, CMYK, YCbCr, CIELab.
PHOTOMETRICS = (0, 1, 2, 3, 5, 6, 8)
GREY = (0, 1)
ALPHAS = (1, 2)
RAW, OLD_JPEG, JPEG = 1, 6, 7
COMPRESSIONS = (1, 2, 3, 4, 5, 6, 7, 8, 32771, 32773, 32809, 32946, 34925, 50000)
# What a tag may state, and what it is where it is missing.
ALLOWED: dict[str, tuple[tuple[int, ...], int]] = {
    "FillOrder": ((1, 2), 1),
    "PlanarConfiguration": ((1, 2), 1),
    "Orientation": (tuple(range(9)), 1),
}
# The same of what is sound but not read.
READ: dict[str, tuple[tuple[int, ...], int]] = {
    "InkSet": ((1,), 1),
    "Indexed": ((0,), 0),
    "OPIProxy": ((0,), 0),
    "MDFileTag": ((0, 128), 0),  # 2 = square roots of what was measured
    "Predictor": ((1, 2), 1),
    "Compression": (COMPRESSIONS, RAW),
}
# Black, white and zero of each component, where they are all of the range.
WHOLE = ((0, 255, 128, 255, 128, 255), (0, 255, 0, 255, 0, 255))
LUMA = (0.299, 0.587, 0.114)


def values(page: "TiffPage", name: str, missing: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a tag states, as a tuple."""
    tag = page.tags.get(name)
    if tag is None:
        return missing
    several = isinstance(tag.value, tuple | list | np.ndarray)
    return tuple(tag.value) if several else (tag.value,)


def signed(page: "TiffPage") -> bool:
    """Whether samples are whole numbers with a sign."""
    return bool(values(page, "SampleFormat", (1,))[0] == 2)


def check(path: Path, page: "TiffPage") -> None:
    """Refuse an image for its tags, before a pixel is touched.

    Raises:
        BadImage: above 64 Mpx, numbers that do not exist, or a kind that is not read.
    """
    check_size(path, page.imagelength, page.imagewidth)
    for name, (allowed, missing) in ALLOWED.items():
        stated = values(page, name, (missing,))
        if len(stated) != 1 or stated[0] not in allowed:
            listed = ", ".join(map(str, allowed))
            raise BadImage(path, f"states {name} {stated[0]}; allowed: {listed}; save it again")
    kind = _unread(page)
    if kind:
        raise not_read(path, f"a TIFF {kind}")


def _unread(page: "TiffPage") -> str:
    """What is sound about an image but not read; "" where all is read."""
    bits, formats = values(page, "BitsPerSample", (1,)), values(page, "SampleFormat", (1,))
    samples = page.samplesperpixel
    if not 1 <= samples <= MOST_SAMPLES:
        return f"of {samples} samples a pixel"
    bits, formats = bits[:samples], formats[:samples]
    if len(set(bits)) > 1 or len(set(formats)) > 1:
        return f"of unequal samples: {bits} bits, formats {formats}"
    if formats[0] in FORMATS:
        return f"of {bits[0]} bits, {FORMATS[formats[0]]} samples"
    if formats[0] not in (1, 2):
        return f"of SampleFormat {formats[0]}"
    for name, (allowed, missing) in READ.items():
        stated = page.tags.valueof(name, missing)
        if stated not in allowed:
            return f"with {name} {getattr(stated, 'name', stated)}"
    return _unread_colors(page, samples, bits[0])


def _unread_colors(page: "TiffPage", samples: int, bits: int) -> str:
    photometric = page.tags.valueof("PhotometricInterpretation")
    if photometric is None and bits > 1 and page.compression != OLD_JPEG:
        return "that does not state whether 0 is black or white (PhotometricInterpretation)"
    if photometric is not None and photometric not in PHOTOMETRICS:
        return f"with samples of the kind {getattr(photometric, 'name', photometric)}"
    extra = values(page, "ExtraSamples", ())
    if photometric == 2 and samples < 3:
        return f"of {samples} samples a pixel, RGB"
    if len(extra) >= samples or sum(kind in ALPHAS for kind in extra) > 1:
        return f"with ExtraSamples {extra} of {samples} samples"
    if page.is_tiled and 324 not in page.tags:
        return "that lists its tiles as strips (TileOffsets is missing)"
    if 433 in page.tags:
        return "with a Decode table"
    if photometric in GREY and (curve := values(page, "GrayResponseCurve", ())):
        # Densities: high where it is black.
        steps = [b - a for a, b in zip(curve, curve[1:], strict=False)]
        if any(step * (1 if photometric == 0 else -1) < 0 for step in steps):
            return "whose GrayResponseCurve contradicts its PhotometricInterpretation"
    if photometric == 6:
        levels = tuple(a / b for a, b in _fractions(page, "ReferenceBlackWhite"))
        weights = [a / b for a, b in _fractions(page, "YCbCrCoefficients")]
        if levels and levels not in WHOLE:
            return f"with ReferenceBlackWhite {levels}"
        if any(abs(a - b) > 0.005 for a, b in zip(weights, LUMA, strict=False)):
            return f"with YCbCrCoefficients {weights}"
    return ""


def _fractions(page: "TiffPage", name: str) -> list[tuple[int, int]]:
    flat = values(page, name, ())
    return [(a, b or 1) for a, b in zip(flat[::2], flat[1::2], strict=False)]


def check_data(path: Path, page: "TiffPage") -> None:
    """Refuse an image whose strips or tiles are not all there; fill in lengths that are not stated.

    Raises:
        BadImage: truncated, or damaged JPEG data within.
    """
    if page.photometric != 6:
        page.subsampling = None  # it is of chroma only
    size, rows = page.parent.filehandle.size, _rows(path, page)
    plain = page.compression == RAW and not page.is_subsampled
    if plain and 279 not in page.tags and 325 not in page.tags:
        page.databytecounts = (0,) * len(rows)
    parts = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    if len(parts) < len(rows):
        raise BadImage(path, f"damaged TIFF: has {len(parts)} of its {len(rows)} strips or tiles")
    lengths = []
    for (start, length), count in zip(parts, rows, strict=False):
        if start == length == 0:
            raise BadImage(
                path,
                "leaves out strips or tiles: a sparse TIFF, or not written to its end; "
                "save it again whole",
            )
        if plain:
            across = page.tilewidth if page.is_tiled else page.imagewidth
            together = page.samplesperpixel if page.planarconfig == 1 else 1
            needed = count * -(-across * together * page.bitspersample // 8)
            # 0 is what programs write that do not know.
            length = needed if length == 0 or length > needed else length
            if length < needed:
                raise BadImage(path, f"truncated TIFF: {length} of the {needed} bytes of a strip")
        if length <= 0 or start <= 0 or start + length > size:
            raise BadImage(
                path, f"truncated TIFF: pixels from byte {start} to {start + length} of {size}"
            )
        lengths.append(length)
    page.databytecounts = tuple(lengths)
    if page.compression == JPEG:
        _check_jpegs(path, page, parts)


def _rows(path: Path, page: "TiffPage") -> list[int]:
    """Rows of each strip or tile."""
    height, width = page.imagelength, page.imagewidth
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    extra = values(page, "ExtraSamples", ())
    if planes > 1 and not any(extra):
        planes -= len(extra)  # not looked at
    if page.is_tiled:
        high, wide = page.tilelength, page.tilewidth
        if high < 1 or wide < 1:
            raise BadImage(path, f"damaged TIFF: tiles of {wide} x {high} pixels")
        return [high] * (-(-height // high) * -(-width // wide) * planes)
    high = page.rowsperstrip
    if high < 1:
        raise BadImage(path, f"damaged TIFF: states RowsPerStrip {high}; allowed: 1 or more")
    return [min(high, height - top) for top in range(0, height, high)] * planes


def _check_jpegs(path: Path, page: "TiffPage", parts: list[tuple[int, int]]) -> None:
    tables = page.tags.valueof("JPEGTables") or b""
    for start, length in parts:
        page.parent.filehandle.seek(start)
        data = page.parent.filehandle.read(length)
        # Both are whole streams from the first to the last marker.
        jpeg.check(path, b"\xff\xd8" + tables[2:-2] + data[2:], inside=True)
