"""Random textures: white noise, spongy bone, muscle fibres."""

import cv2
import numpy as np

from selftaught.phantoms.raster import Map

GRAIN, FIBRES = 0.16, 0.025


def blur(values: Map, across: float, along: float | None = None) -> Map:
    """Gaussian blur of (H, W) with standard deviations in pixels (columns, rows)."""
    smooth = cv2.GaussianBlur(values, (0, 0), sigmaX=across, sigmaY=along or across)
    return np.asarray(smooth, np.float32)


def white_noise(generator: np.random.Generator, shape: tuple[int, int]) -> Map:
    """(H, W) standard normal numbers."""
    return generator.standard_normal(shape, dtype=np.float32)


def textures(
    generator: np.random.Generator, height: int, width: int, scale: float
) -> tuple[Map, Map]:
    """Factors around 1 for spongy bone (fine trabeculae) and muscle (broad fibres).

    Args:
        generator: draws both.
        height: rows.
        width: columns.
        scale: pixels per mm.

    Returns:
        Two (height, width) maps.
    """
    noise = white_noise(generator, (height, width))
    fine = blur(noise, max(0.22 * scale, 0.4), max(0.55 * scale, 0.5))
    fine = fine - blur(noise, max(1.1 * scale, 1.0))
    fine = fine * np.float32(GRAIN / max(float(fine.std()), 1e-6))
    coarse = np.asarray(cv2.resize(noise, (max(4, width // 8), max(4, height // 8))), np.float32)
    coarse = blur(coarse, max(0.25 * scale, 0.5), max(1.5 * scale, 1.0))
    coarse = coarse * np.float32(FIBRES / max(float(coarse.std()), 1e-6))
    fibres = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(1 + fine, 0.3, 1.8), np.asarray(1 + fibres, np.float32)
