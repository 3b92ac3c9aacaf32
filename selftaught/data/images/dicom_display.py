"""DICOM sample values to what a screen shows: modality, window, polarity (PS3.3 C.11)."""

from pathlib import Path

import numpy as np

from selftaught.data.images import dicom_shutter
from selftaught.data.images.dicom_elements import Elements
from selftaught.data.images.dicom_pixels import PALETTE, Description
from selftaught.data.images.dicom_tables import Table, segmented, table
from selftaught.data.images.dicom_values import group, items, number, numbers, word
from selftaught.data.images.limits import BadImage

LUMA_RGB = np.array([0.299, 0.587, 0.114], np.float32)
FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
RESCALE = ("RescaleSlope", "RescaleIntercept")
WINDOW = ("WindowCenter", "WindowWidth", "VOILUTSequence")


def grey(path: Path, elements: Elements, pixels: Description, samples: np.ndarray) -> np.ndarray:
    """Grey samples as displayed: brighter means denser, whatever the polarity.

    All steps act on single values, so they are applied once to every value that can be stored
    (at most 65,536) and looked up.

    Args:
        path: named in errors.
        elements: of the file.
        pixels: the description of the samples.
        samples: (H, W) stored values.

    Returns:
        (H, W) uint8 for at most 8 bits stored, else uint16. What is no part of the image, padding
        and what a shutter hides, is dark.

    Raises:
        BadImage: numbers that are not allowed, or that show all pixels alike.
    """
    inverted = pixels.photometric == "MONOCHROME1"
    shape = word(path, elements, "PresentationLUTShape", ("IDENTITY", "INVERSE"))
    if shape == "INVERSE" and not inverted:
        raise BadImage(
            path,
            "PresentationLUTShape INVERSE of MONOCHROME2: which one holds is unknown; allowed: "
            "IDENTITY of MONOCHROME2, or INVERSE of MONOCHROME1",
        )
    if items(elements, "PresentationLUTSequence"):
        raise BadImage(path, "PresentationLUTSequence is not read; allowed: PresentationLUTShape")
    bits = pixels.stored
    lowest = -(2 ** (bits - 1)) if pixels.signed else 0
    stored = np.arange(lowest, lowest + 2**bits)
    shown = _displayed(path, elements, stored)
    levels = _to_levels(1.0 - shown if inverted else shown, bits)
    index = np.clip(samples.astype(np.int32) - lowest, 0, 2**bits - 1)
    picture = levels[index]
    picture[_padded(path, elements, pixels, index, lowest)] = 0
    dicom_shutter.apply(path, elements, picture)
    if picture.min() == picture.max() and index.min() != index.max():
        raise BadImage(
            path,
            "all pixels would be shown alike: its window, lookup tables, padding value or shutter "
            "do not belong to its pixels; correct or remove the wrong one",
        )
    return picture


def luma(path: Path, elements: Elements, pixels: Description, samples: np.ndarray) -> np.ndarray:
    """Colour samples, already RGB or palette indices, to Rec. 601 luma.

    Args:
        path: named in errors.
        elements: of the file.
        pixels: the description of the samples.
        samples: (H, W, 3) RGB or (H, W) palette indices.

    Returns:
        (H, W) uint8 for at most 8 bits a colour, else uint16.

    Raises:
        BadImage: a palette or shutter that is not allowed.
    """
    bits = pixels.stored
    if pixels.photometric == PALETTE:
        samples, bits = _through_palette(path, elements, pixels, samples)
    picture = _to_levels((samples.astype(np.float32) @ LUMA_RGB) / (2**bits - 1), bits)
    return dicom_shutter.apply(path, elements, picture)


def _to_levels(shown: np.ndarray, bits: int) -> np.ndarray:
    """[0, 1] to the whole range of uint8 or uint16."""
    top, dtype = (255, np.uint8) if bits <= 8 else (65535, np.uint16)
    return np.rint(np.clip(shown, 0.0, 1.0) * top).astype(dtype)


def _displayed(path: Path, elements: Elements, stored: np.ndarray) -> np.ndarray:
    """Every stored value's brightness in [0, 1], before polarity."""
    modality = _lookup(path, items(elements, "ModalityLUTSequence"), stored)
    values = _rescaled(path, elements, stored) if modality is None else modality(stored)
    voi = group(elements, "FrameVOILUTSequence", WINDOW)
    curve = _lookup(path, items(voi, "VOILUTSequence"), values)
    if curve is not None:
        if curve.entries.min() < 0:
            raise BadImage(path, "VOILUTSequence: LUTData has negative entries")
        return curve(np.rint(values)) / (2.0**curve.bits - 1.0)
    return _windowed(path, voi, values)


def _rescaled(path: Path, elements: Elements, stored: np.ndarray) -> np.ndarray:
    source = group(elements, "PixelValueTransformationSequence", RESCALE)
    slope, intercept = (number(path, source, name) for name in RESCALE)
    slope, intercept = 1.0 if slope is None else slope, intercept or 0.0
    with np.errstate(over="ignore"):
        values = stored * slope + intercept
    if not np.isfinite(values).all() or values[0] == values[-1]:
        raise BadImage(
            path,
            f"RescaleSlope {slope:g}, RescaleIntercept {intercept:g}: "
            "samples would be alike or not finite; allowed: numbers that keep them apart",
        )
    return values


def _windowed(path: Path, voi: Elements, values: np.ndarray) -> np.ndarray:
    centers, widths = (numbers(path, voi, name) for name in ("WindowCenter", "WindowWidth"))
    pairs = zip(centers, widths, strict=False)
    pair = next(((c, w) for c, w in pairs if c is not None and w is not None), None)
    if pair is None:
        if any(value is not None for value in centers + widths):
            raise BadImage(
                path,
                "WindowCenter and WindowWidth: one of them is missing; allowed: both or neither",
            )
        lowest, highest = float(values.min()), float(values.max())
        return (values - lowest) / max(highest - lowest, 1e-12)
    center, width = pair
    function = word(path, voi, "VOILUTFunction", FUNCTIONS) or "LINEAR"
    if width <= 0 or (function == "LINEAR" and width < 1):
        allowed = "from 1" if function == "LINEAR" else "above 0"
        raise BadImage(
            path, f"window of center {center:g}, width {width:g}; allowed: widths {allowed}"
        )
    return _window(values, center, width, function)


def _lookup(path: Path, tables: list[Elements], values: np.ndarray) -> Table | None:
    """The first table of a sequence; its depth is its entries' own, whatever is stated."""
    if not tables:
        return None
    lowest, highest = float(values.min()), float(values.max())
    return table(path, tables[0], "LUTDescriptor", "LUTData", lowest, highest)


def _window(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        if function == "SIGMOID":
            return 0.5 * (1.0 + np.tanh(2.0 * (values - center) / width))
        if function == "LINEAR_EXACT":
            return np.clip((values - center) / width + 0.5, 0.0, 1.0)
        if width == 1.0:
            return (values > center - 0.5).astype(np.float64)
        return np.clip((values - (center - 0.5)) / (width - 1.0) + 0.5, 0.0, 1.0)


def _padded(
    path: Path, elements: Elements, pixels: Description, index: np.ndarray, lowest: int
) -> np.ndarray | slice:
    """Where stored values, counted from the lowest, are padding (PS3.3 C.7.5.1.1.2)."""
    value, limit = (
        number(path, elements, name, signed=pixels.signed)
        for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")
    )
    if value is None:
        if limit is not None:
            raise BadImage(path, "PixelPaddingRangeLimit without PixelPaddingValue")
        return slice(0)
    # Either sign is written in either representation.
    period = 2**16 if pixels.allocated > 8 or abs(value) > 255 else 2**8
    ends = []
    for end in (value, value if limit is None else limit):
        if pixels.signed and end >= period / 2:
            end -= period
        elif not pixels.signed and end < 0:
            end += period
        ends.append(end - lowest)
    return (index >= min(ends)) & (index <= max(ends))


def _through_palette(
    path: Path, elements: Elements, pixels: Description, samples: np.ndarray
) -> tuple[np.ndarray, int]:
    """Palette indices to (H, W, 3) colours, and these colours' bits."""
    lowest, highest = float(samples.min()), float(samples.max())
    colors = []
    for color in ("Red", "Green", "Blue"):
        names = f"{color}PaletteColorLookupTable"
        read, part = (table, "") if f"{names}Data" in elements else (segmented, "Segmented")
        if f"{part}{names}Data" not in elements:
            raise BadImage(path, f"{names}Data is missing")
        colors.append(
            read(path, elements, f"{names}Descriptor", f"{part}{names}Data", lowest, highest)
        )
    bits = 8 if max(color.bits for color in colors) <= 8 else 16
    return np.stack([color(samples) for color in colors], -1), bits
