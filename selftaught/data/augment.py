"""What may happen to a view: ranges and probabilities, with the paper's settings and ours."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, get_args

Range = tuple[float, float]
Preset = Literal["default", "quick", "eq2", "eq2-quick", "paper"]

MAX_CROP_TRIES = 10
PROBABILITIES = ("horizontal_flip", "vertical_flip", "color", "blur")
# Range of each setting's two limits: lowest, highest, whether the lowest itself is allowed.
LIMITS: dict[str, tuple[float, float, bool]] = {
    "brightness": (0.0, 10.0, True),
    "scale": (0.0, 10.0, False),
    "rotation": (-180.0, 180.0, True),
    "crop_area": (0.0, 1.0, False),
    "crop_ratio": (0.0, 10.0, False),
    "color_brightness": (0.0, 10.0, True),
    "color_contrast": (0.0, 10.0, True),
    "blur_sigma": (0.0, 50.0, True),
}
CHOICES: dict[str, tuple[object, ...]] = {
    "rotation_steps": ("continuous", "integer"),
    "crop_box": ("intended", "published"),
    "scale_pivot": ("center", "corner"),
    "order": ("composed", "published"),
    "mask_scale": (1, 255),
}


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How a view is drawn; the defaults change nothing.

    The published order is Fig. 5 of the paper: autocontrast, flips, brightness, scale and rotation
    at the image's own size, resize, pad, crop, colour, blur, min-max, mask, each step resampling
    and rounding again, and rotation cutting the corners of oblong images. The composed order
    prepares a square canvas once and resamples it once by one matrix: sharper, several times
    faster, and nothing is cut that the crop would have kept.

    Args:
        autocontrast: per cent of the pixels cut at each end of the histogram.
        horizontal_flip: probability.
        vertical_flip: probability.
        brightness: range of the factor on all grey levels (fine-tuning stage).
        scale: range of the factor; pivot center: magnification; pivot corner: as published, the
            inverse of it.
        rotation: range in degrees, counter-clockwise.
        rotation_steps: integer = whole degrees, upper limit excluded, as published.
        crop_area: range of the crop's share of the canvas.
        crop_ratio: range of its width / height, log-uniform.
        crop_tries: draws until a crop fits into the canvas; then the whole canvas.
        crop_box: published = with the argument order of the published code, which keeps a mean
            area of 0.51 instead of 0.65 and looks at the upper left half.
        color: probability of the colour distortion.
        color_brightness: range of its factor on all grey levels.
        color_contrast: range of its factor about the image mean.
        blur: probability.
        blur_sigma: range in pixels of the finished view.
        scale_pivot: the image centre, or the top left corner as published.
        order: composed = one resampling; published = step by step.
        mask_scale: value of the mask inside the body part: 1, or 255 as in the published pretext
            stage, so that views reach from 0 to 255.

    Raises:
        ValueError: a value outside its range, naming it.
    """

    autocontrast: float = 1.0
    horizontal_flip: float = 0.0
    vertical_flip: float = 0.0
    brightness: Range = (1.0, 1.0)
    scale: Range = (1.0, 1.0)
    rotation: Range = (0.0, 0.0)
    rotation_steps: Literal["continuous", "integer"] = "continuous"
    crop_area: Range = (1.0, 1.0)
    crop_ratio: Range = (1.0, 1.0)
    crop_tries: int = 10
    crop_box: Literal["intended", "published"] = "intended"
    color: float = 0.0
    color_brightness: Range = (1.0, 1.0)
    color_contrast: Range = (1.0, 1.0)
    blur: float = 0.0
    blur_sigma: Range = (0.0, 0.0)
    scale_pivot: Literal["center", "corner"] = "center"
    order: Literal["composed", "published"] = "composed"
    mask_scale: Literal[1, 255] = 1

    def __post_init__(self) -> None:
        if not 0.0 <= self.autocontrast < 50.0:
            raise ValueError(f"autocontrast {self.autocontrast}: allowed 0 to below 50 per cent")
        for name in PROBABILITIES:
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} {value}: a probability must be from 0 to 1")
        for name, limits in LIMITS.items():
            object.__setattr__(self, name, _checked_range(name, getattr(self, name), *limits))
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)!r}: allowed {allowed}")
        if not 1 <= self.crop_tries <= MAX_CROP_TRIES:
            raise ValueError(f"crop_tries {self.crop_tries}: allowed 1 to {MAX_CROP_TRIES}")
        shortest = self.crop_area[0] * min(self.crop_ratio[0], 1 / self.crop_ratio[1])
        if self.crop_box == "published" and shortest <= 0.25:
            raise ValueError(
                f"crop_area {self.crop_area}, crop_ratio {self.crop_ratio}: crop_box published "
                "needs crops with sides above half the canvas; allowed otherwise: intended"
            )

    @property
    def input_range(self) -> tuple[float, float]:
        """Lowest and highest value that a view can have."""
        return 0.0, float(self.mask_scale)


def _checked_range(name: str, value: Range, lowest: float, highest: float, closed: bool) -> Range:
    """Two finite limits in order, as a tuple (a list, from YAML, is taken too)."""
    try:
        low, high = (float(limit) for limit in value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} {value!r}: two numbers are needed, low and high") from None
    inside = lowest <= low <= high <= highest and (closed or low > lowest)
    if not (math.isfinite(low) and math.isfinite(high) and inside):
        least = f"{lowest:g}" if closed else f"above {lowest:g}"
        raise ValueError(f"{name} ({low:g}, {high:g}): allowed low <= high, {least} to {highest:g}")
    return low, high


def plain(augment: Augment) -> Augment:
    """The same preparation and scale without any randomness (A3, row 15)."""
    return Augment(
        autocontrast=augment.autocontrast,
        order=augment.order,
        mask_scale=augment.mask_scale,
    )


PLAIN = Augment()

_PRETEXT = Augment(
    horizontal_flip=0.5,
    scale=(0.8, 1.2),
    rotation=(-45.0, 45.0),
    crop_area=(0.4, 1.0),
    crop_ratio=(0.8, 1.25),
    color=0.8,
    color_brightness=(0.6, 1.4),
    color_contrast=(0.6, 1.4),
    blur=0.5,
    blur_sigma=(0.1, 2.0),
)
_FINETUNE = Augment(
    horizontal_flip=0.5,
    vertical_flip=0.5,
    brightness=(0.8, 1.2),
    scale=(0.8, 1.2),
    rotation=(-20.0, 20.0),
)
_PUBLISHED = {
    "rotation_steps": "integer",
    "crop_box": "published",
    "scale_pivot": "corner",
    "order": "published",
}


def pretext_augment(preset: Preset = "eq2") -> Augment:
    """The heavy augmentation of the contrastive stage (paper Fig. 5).

    Args:
        preset: paper = as published, views from 0 to 255; the others = corrected.

    Raises:
        ValueError: an unknown preset.
    """
    if _published(preset):
        return dataclasses.replace(_PRETEXT, **_PUBLISHED, mask_scale=255)  # type: ignore[arg-type]
    return _PRETEXT


def finetune_augment(preset: Preset = "eq2") -> Augment:
    """The mild augmentation of the anomaly detection stage (paper Fig. 5).

    Args:
        preset: paper = as published; the others = corrected.

    Raises:
        ValueError: an unknown preset.
    """
    if _published(preset):
        return dataclasses.replace(_FINETUNE, **_PUBLISHED)  # type: ignore[arg-type]
    return _FINETUNE


def _published(preset: str) -> bool:
    if preset not in get_args(Preset):
        raise ValueError(f"preset {preset!r}: allowed {', '.join(get_args(Preset))}")
    return preset == "paper"
