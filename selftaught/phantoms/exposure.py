"""X-ray physics: scatter, heel effect, blur, noise and the viewing window."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from selftaught.phantoms.absorption import BODY_FROM_MM, Absorption
from selftaught.phantoms.raster import Map
from selftaught.phantoms.texture import blur


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """One way of taking and showing a picture.

    Attributes:
        heel: change of the beam along the film, share.
        scatter: scattered share of the light behind the body.
        blur_mm: focal spot and detector blur, mm.
        photons: per square mm on an uncovered detector.
        electronic: detector noise, share of the uncovered signal.
        tissue: grey level of the typical soft tissue, 0 to 1.
        brightest: factor on the line integral shown as white.
        gamma: contrast curve.
        sharpen: strength of the edge enhancement.
        level: share of the body's thickness that the display takes out, so that thin and thick
            parts are both readable.
    """

    heel: float
    scatter: float
    blur_mm: float
    photons: float
    electronic: float
    tissue: float
    brightest: float
    gamma: float
    sharpen: float
    level: float


def draw_exposure(generator: np.random.Generator) -> Exposure:
    """Draw one exposure."""
    uniform = generator.uniform
    return Exposure(
        heel=float(uniform(-0.08, 0.08)),
        scatter=float(uniform(0.05, 0.3)),
        blur_mm=float(uniform(0.12, 0.3)),
        photons=float(10 ** uniform(4.8, 5.7)),
        electronic=float(uniform(0.001, 0.004)),
        tissue=float(uniform(0.26, 0.46)),
        brightest=float(uniform(0.98, 1.2)),
        gamma=float(uniform(0.8, 1.35)),
        sharpen=float(uniform(0.0, 0.7)),
        level=float(uniform(0.2, 0.7)),
    )


def detect(
    scale: float,
    seen: Map,
    healthy: Absorption,
    cover: npt.NDArray[np.bool_],
    exposure: Exposure,
    noise: tuple[Map, Map],
) -> Map:
    """What the film shows.

    Scatter and the window come from the healthy body, so that a picture and its twin without
    the anomaly differ only where the anomaly is.

    Args:
        scale: pixels per mm.
        seen: (height, width) line integrals to expose.
        healthy: the same scene without its anomaly.
        cover: (height, width) the exposed field.
        exposure: settings.
        noise: two (height, width) maps of standard normal numbers.

    Returns:
        (height, width) in [0, 1], bone bright.
    """
    light = np.exp(-seen)
    light = blur(light, max(exposure.blur_mm * scale, 0.35))
    stray = np.exp(-cv2.resize(healthy.total, (32, 32), interpolation=cv2.INTER_AREA))
    stray = blur(np.asarray(stray, np.float32), 3.0)
    stray = cv2.resize(stray, (seen.shape[1], seen.shape[0]), interpolation=cv2.INTER_LINEAR)
    rows = np.linspace(-1, 1, seen.shape[0], dtype=np.float32)[:, None]
    heel = 1 + np.float32(exposure.heel) * rows
    light = heel * (light + np.float32(exposure.scatter * 0.35) * stray)
    per_pixel = np.float32(exposure.photons / scale**2)
    light += np.sqrt(light / per_pixel) * noise[0] + np.float32(exposure.electronic) * noise[1]
    density = -np.log(np.maximum(light, np.float32(2e-3)))
    return _shown(scale, density, healthy, cover, exposure)


def _shown(
    scale: float,
    density: Map,
    healthy: Absorption,
    cover: npt.NDArray[np.bool_],
    exposure: Exposure,
) -> Map:
    """Window, contrast curve and edge enhancement."""
    body = (healthy.thick > 4 * BODY_FROM_MM) & cover
    flat = np.float32(-exposure.level) * blur(healthy.soft, max(5.0 * scale, 0.6))
    if not body.any():
        body = np.ones_like(body)
    step = max(1, int(body.sum()) // 20000)
    white = exposure.brightest * float(np.percentile((healthy.total + flat)[body][::step], 99.7))
    typical = float(np.median((healthy.soft + flat)[body][::step]))
    share = exposure.tissue ** (1 / exposure.gamma)
    black = max((typical - share * white) / (1 - share), -0.12 * white)
    if exposure.sharpen > 0.05:
        smooth = blur(density, max(2.0 * scale, 0.6))
        density = density + np.float32(exposure.sharpen) * (density - smooth)
    shown = np.clip(
        (density + flat - np.float32(black)) / np.float32(max(white - black, 0.05)), 0, 1
    )
    return shown ** np.float32(exposure.gamma)
