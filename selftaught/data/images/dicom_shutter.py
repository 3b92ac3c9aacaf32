"""What a display shutter hides of a film (PS3.3 C.7.6.11)."""

from pathlib import Path

import numpy as np

from selftaught.data.images.dicom_elements import Elements
from selftaught.data.images.dicom_values import group, integer, numbers
from selftaught.data.images.limits import BadImage

SHAPES = ("RECTANGULAR", "CIRCULAR", "POLYGONAL")
EDGES = (
    *("ShutterLeftVerticalEdge", "ShutterRightVerticalEdge"),
    *("ShutterUpperHorizontalEdge", "ShutterLowerHorizontalEdge"),
)
FAR = 2**31 - 1


def apply(path: Path, elements: Elements, levels: np.ndarray) -> np.ndarray:
    """Put the shutter's level, black where it states none, over what it hides.

    Args:
        path: named in errors.
        elements: of the file.
        levels: (H, W) uint8 or uint16 as shown; written to.

    Raises:
        BadImage: a shutter of unknown shape, or whose numbers are missing or not allowed.
    """
    shutter = group(elements, "FrameDisplayShutterSequence", ("ShutterShape",))
    shapes = shutter["ShutterShape"].value.strip(b" \0") if "ShutterShape" in shutter else b""
    if not shapes:
        return levels
    shown = np.ones(levels.shape, bool)
    for shape in shapes.split(b"\\"):
        name = shape.strip(b" \0").decode("latin-1")
        if name == "RECTANGULAR":
            shown &= _rectangle(path, shutter, levels.shape)
        elif name == "CIRCULAR":
            shown &= _circle(path, shutter, levels.shape)
        elif name == "POLYGONAL":
            shown &= _polygon(path, shutter, levels.shape)
        else:
            raise BadImage(path, f"ShutterShape of unknown value; allowed: {', '.join(SHAPES)}")
    if not shown.any():
        raise BadImage(path, f"ShutterShape {name}: its shutter hides the whole image")
    value = integer(path, shutter, "ShutterPresentationValue", 0, 65535) or 0
    levels[~shown] = round(value / 65535 * np.iinfo(levels.dtype).max)
    return levels


def _rectangle(path: Path, shutter: Elements, size: tuple[int, ...]) -> np.ndarray:
    edges = [integer(path, shutter, name, -FAR, FAR) for name in EDGES]
    if any(edge is None for edge in edges):
        raise BadImage(path, f"ShutterShape RECTANGULAR needs {', '.join(EDGES)}")
    left, right, upper, lower = (edge for edge in edges if edge is not None)
    rows, columns = np.ogrid[1 : size[0] + 1, 1 : size[1] + 1]
    return (left <= columns) & (columns <= right) & (upper <= rows) & (rows <= lower)


def _circle(path: Path, shutter: Elements, size: tuple[int, ...]) -> np.ndarray:
    center = _places(path, shutter, "CenterOfCircularShutter")
    radius = integer(path, shutter, "RadiusOfCircularShutter", 0, FAR)
    if len(center) != 1 or radius is None:
        raise BadImage(path, "ShutterShape CIRCULAR needs a center and RadiusOfCircularShutter")
    rows, columns = np.ogrid[1 : size[0] + 1, 1 : size[1] + 1]
    return (rows - center[0, 0]) ** 2 + (columns - center[0, 1]) ** 2 <= float(radius) ** 2


def _polygon(path: Path, shutter: Elements, size: tuple[int, ...]) -> np.ndarray:
    import cv2

    corners = _places(path, shutter, "VerticesOfThePolygonalShutter")
    if len(corners) < 3 or np.abs(corners).max() >= 2**15:
        raise BadImage(
            path, "VerticesOfThePolygonalShutter: three corners near the image are needed"
        )
    inside = np.zeros(size, np.uint8)
    # Corners are row, column from 1; OpenCV wants x, y from 0.
    cv2.fillPoly(inside, [np.rint(corners[:, ::-1] - 1).astype(np.int32)], 1)
    return inside.astype(bool)


def _places(path: Path, shutter: Elements, name: str) -> np.ndarray:
    """Rows and columns as (N, 2)."""
    values = [np.nan if value is None else value for value in numbers(path, shutter, name)]
    places = np.array(values, np.float64)
    if len(places) % 2 or not np.isfinite(places).all():
        raise BadImage(path, f"{name} is no list of rows and columns")
    return places.reshape(-1, 2)
