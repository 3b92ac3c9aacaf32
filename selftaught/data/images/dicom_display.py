"""DICOM sample values to what a screen shows: modality, window, polarity (PS3.3 C.11)."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from selftaught.data.images.limits import BadImage

if TYPE_CHECKING:
    from pydicom import Dataset

LUMA_RGB = np.array([0.299, 0.587, 0.114], np.float32)
# Width of a window, the smallest that the standard allows, by VOI LUT Function.
LEAST_WIDTH = {"LINEAR": 1.0, "LINEAR_EXACT": 1e-9, "SIGMOID": 1e-9}


def grey(path: Path, elements: "Dataset", samples: np.ndarray) -> np.ndarray:
    """Grey samples as displayed: brighter means denser, whatever the polarity.

    All steps act on single values, so they are applied once to every value that can be stored
    (at most 65,536) and looked up.

    Args:
        path: named in errors.
        elements: the pixel description.
        samples: (H, W) stored values.

    Returns:
        (H, W) uint8 for at most 8 bits stored, else uint16.

    Raises:
        BadImage: a window that the standard does not allow.
    """
    bits = int(elements.BitsStored)
    lowest = -(2 ** (bits - 1)) if elements.get("PixelRepresentation") == 1 else 0
    stored = np.arange(lowest, lowest + 2**bits)
    shown = _displayed(path, elements, stored)
    if elements.PhotometricInterpretation == "MONOCHROME1":
        shown = 1.0 - shown
    table = _to_levels(shown, bits)
    index = np.clip(samples.astype(np.int32) - lowest, 0, 2**bits - 1)
    return table[index]


def luma(elements: "Dataset", samples: np.ndarray) -> np.ndarray:
    """Colour samples, already RGB or palette indices, to Rec. 601 luma.

    Args:
        elements: the pixel description.
        samples: (H, W, 3) RGB or (H, W) palette indices.

    Returns:
        (H, W) uint8 for at most 8 bits a colour, else uint16.
    """
    from pydicom.pixels import apply_color_lut

    bits = int(elements.BitsStored)
    if elements.PhotometricInterpretation == "PALETTE COLOR":
        samples = apply_color_lut(samples, elements)[..., :3]
        bits = 8 * samples.dtype.itemsize
    return _to_levels((samples.astype(np.float32) @ LUMA_RGB) / (2**bits - 1), bits)


def _to_levels(shown: np.ndarray, bits: int) -> np.ndarray:
    """[0, 1] to the whole range of uint8 or uint16."""
    top, dtype = (255, np.uint8) if bits <= 8 else (65535, np.uint16)
    return np.rint(np.clip(shown, 0.0, 1.0) * top).astype(dtype)


def _displayed(path: Path, elements: "Dataset", stored: np.ndarray) -> np.ndarray:
    """Every stored value's brightness in [0, 1], before polarity."""
    if elements.get("ModalityLUTSequence"):
        values, _ = _through_table(elements, "ModalityLUTSequence", stored)
    else:
        slope, intercept = _first(elements, "RescaleSlope"), _first(elements, "RescaleIntercept")
        values = stored * (1.0 if slope is None else slope) + (intercept or 0.0)
    if elements.get("VOILUTSequence"):
        shown, bits = _through_table(elements, "VOILUTSequence", np.rint(values))
        return shown / (2.0**bits - 1.0)
    center, width = _first(elements, "WindowCenter"), _first(elements, "WindowWidth")
    if center is None or width is None:
        lowest, highest = float(values.min()), float(values.max())
        return (values - lowest) / max(highest - lowest, 1e-12)
    function = elements.get("VOILUTFunction") or "LINEAR"
    if function not in LEAST_WIDTH:
        raise BadImage(path, f"VOILUTFunction {function!r}; allowed: {tuple(LEAST_WIDTH)}")
    if not (np.isfinite(center) and LEAST_WIDTH[function] <= width < np.inf):
        raise BadImage(path, f"window of center {center:g}, width {width:g} is not allowed")
    return _window(values, center, width, function)


def _through_table(elements: "Dataset", name: str, values: np.ndarray) -> tuple[np.ndarray, int]:
    """Values through the first table of a sequence, as float64, and the table's depth in bits.

    pydicom's own modality table knows depths of 8 and 16 bits only; others are common.
    """
    item = elements[name].value[0]
    _, first, bits = (int(number) for number in item.LUTDescriptor)
    data = item.LUTData
    if isinstance(data, bytes):
        order = "<" if elements.file_meta.TransferSyntaxUID.is_little_endian else ">"
        table = np.frombuffer(data, f"{order}u2").astype(np.float64)
    else:
        table = np.atleast_1d(np.asarray(data, np.float64))
    return table[np.clip(values - first, 0, table.size - 1).astype(np.int64)], bits


def _window(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    if function == "SIGMOID":
        return 0.5 * (1.0 + np.tanh(2.0 * (values - center) / width))
    if function == "LINEAR_EXACT":
        return np.clip((values - center) / width + 0.5, 0.0, 1.0)
    if width == 1.0:
        return (values > center - 0.5).astype(np.float64)
    return np.clip((values - (center - 0.5)) / (width - 1.0) + 0.5, 0.0, 1.0)


def _first(elements: "Dataset", name: str) -> float | None:
    """The first value of a window element, or None when it is absent or empty."""
    value = elements.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, int | float):
        return float(value)
    return float(value[0]) if len(value) else None
