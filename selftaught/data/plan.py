"""All randomness of the data: order of samples and augmentation, as pure functions of the seed.

A plan is an array of parameters, one row per view; any pipeline executes it. Nothing here depends
on the number of ranks, workers or images in a batch, so a run may resume with other ones.
"""

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from selftaught.data.augment import (
    MAX_CROP_TRIES,
    PLAIN,
    Augment,
    finetune_augment,
    plain,
    pretext_augment,
)

__all__ = [
    "PARAMETERS",
    "PLAIN",
    "Augment",
    "batch_at",
    "draw",
    "finetune_augment",
    "known_in_batch",
    "plain",
    "pretext_augment",
    "share_at",
    "stand_ins",
    "steps_per_epoch",
]

# What one view is made with. Flips are 0 or 1; `scale` magnifies; `angle` is in degrees, counter-
# clockwise as seen; the crop is in fractions of the square canvas; a factor of 1 and a blur of 0
# pixels leave the image as it is.
PARAMETERS: tuple[str, ...] = (
    "horizontal_flip",
    "vertical_flip",
    "brightness",
    "scale",
    "angle",
    "crop_left",
    "crop_top",
    "crop_width",
    "crop_height",
    "color_brightness",
    "color_contrast",
    "blur_sigma",
)
# Every quantity owns fixed columns of a row of uniform numbers, so that switching one
# augmentation off leaves all others as they were.
FLIP_X, FLIP_Y, BRIGHTNESS, SCALE, ANGLE = range(5)
COLOR, COLOR_BRIGHTNESS, COLOR_CONTRAST, BLUR, BLUR_SIGMA = range(5, 10)
CROP_LEFT, CROP_TOP, CROP_TRIES = 10, 11, 12
UNIFORMS = CROP_TRIES + 2 * MAX_CROP_TRIES

STAND_INS = 100

Uniforms = NDArray[np.float64]


def draw(
    augment: Augment,
    *,
    seed: int,
    stage: str,
    epoch: int,
    samples: ArrayLike,
    views: int,
) -> NDArray[np.float32]:
    """Draw the parameters of every view of some samples.

    Args:
        augment: ranges and probabilities.
        seed: the run's seed, any integer.
        stage: name of the stream, such as "pretext".
        epoch: from 0.
        samples: (B,) sample ids, from 0.
        views: V, views per sample, from 1.

    Returns:
        (B, V, P) float32, columns as in `PARAMETERS`. The row of (seed, stage, epoch, sample,
        view) does not depend on the other samples, nor on V.

    Raises:
        ValueError: a negative epoch or sample id, or views < 1.
    """
    ids = np.asarray(samples, dtype=np.int64).reshape(-1)
    if epoch < 0 or views < 1 or (ids.size and ids.min() < 0):
        raise ValueError(
            f"epoch {epoch}, views {views}, least sample id {ids.min(initial=0)}: "
            "epoch and ids start at 0, views at 1"
        )
    key = _key(seed, stage, "augment")
    uniform = np.empty((ids.size, views, UNIFORMS))
    for row, sample in enumerate(ids.tolist()):
        for view in range(views):
            counter = np.array([0, view, sample, epoch], np.uint64)
            generator = np.random.Generator(np.random.Philox(key=key, counter=counter))
            uniform[row, view] = generator.random(UNIFORMS)
    columns = _parameters(augment, uniform)
    return np.stack([columns[name] for name in PARAMETERS], axis=-1).astype(np.float32)


def steps_per_epoch(n: int, batch_size: int, drop_last: bool = True) -> int:
    """Number of global batches in an epoch of n samples.

    Raises:
        ValueError: n or batch_size < 1, or not one full batch although `drop_last`.
    """
    if n < 1 or batch_size < 1:
        raise ValueError(f"{n} samples in batches of {batch_size}: both must be at least 1")
    if drop_last and batch_size > n:
        raise ValueError(f"batch_size {batch_size} exceeds the {n} samples; allowed 1 to {n}")
    return n // batch_size if drop_last else -(-n // batch_size)


def batch_at(
    seed: int, stage: str, step: int, n: int, batch_size: int, drop_last: bool = True
) -> tuple[int, NDArray[np.int64]]:
    """The samples of one global step: every epoch is a new permutation of 0..n-1.

    Args:
        seed: the run's seed.
        stage: name of the stream, such as "finetune".
        step: global step from 0, over all epochs.
        n: number of samples.
        batch_size: global batch size, in samples; a rank takes its slice.
        drop_last: leave out the incomplete batch at an epoch's end.

    Returns:
        (epoch, ids): ids (batch_size,) int64, fewer in an epoch's last batch if not `drop_last`.

    Raises:
        ValueError: a negative step, or sizes that `steps_per_epoch` refuses.
    """
    if step < 0:
        raise ValueError(f"step {step}: steps start at 0")
    epoch, position = divmod(step, steps_per_epoch(n, batch_size, drop_last))
    start = position * batch_size
    return epoch, _permutation(seed, stage, epoch, n)[start : start + batch_size].copy()


def share_at(
    seed: int, stage: str, step: int, known: NDArray[np.bool_], batch_size: int, share: float
) -> NDArray[np.int64]:
    """The samples of one global step whose batches hold a fixed share of known samples.

    The others come as they would alone, each once before any comes again; the known ones are drawn
    with replacement. Both are mixed, so that every rank's part has some of each.

    Args:
        seed: the run's seed.
        stage: name of the stream.
        step: global step from 0.
        known: (n,) which of the samples 0..n-1 are known.
        batch_size: global batch size, in samples.
        share: of known samples in a batch, above 0 and below 1; at least one of each kind.

    Returns:
        (batch_size,) int64.

    Raises:
        ValueError: a batch of one, or no sample of one of the kinds.
    """
    kinds = np.flatnonzero(known), np.flatnonzero(~known)
    if batch_size < 2 or not len(kinds[0]) or not len(kinds[1]):
        raise ValueError(
            f"{len(kinds[0])} known and {len(kinds[1])} other samples in batches of {batch_size}: "
            "a fixed share needs two or more in a batch, and some of each kind"
        )
    wanted = known_in_batch(batch_size, share)
    counter = np.array([0, 0, step, 0], np.uint64)
    key = _key(seed, stage, "share")
    generator = np.random.Generator(np.random.Philox(key=key, counter=counter))
    drawn = kinds[0][(generator.random(wanted) * len(kinds[0])).astype(np.int64)]
    positions = step * (batch_size - wanted) + np.arange(batch_size - wanted)
    rounds, places = np.divmod(positions, len(kinds[1]))
    orders = {one: _permutation(seed, stage, one, len(kinds[1])) for one in set(rounds.tolist())}
    others = np.array([orders[one][place] for one, place in zip(rounds, places, strict=True)])
    mixed = np.concatenate([drawn, kinds[1][others]])
    return mixed[np.argsort(generator.random(batch_size), kind="stable")]


def known_in_batch(batch_size: int, share: float) -> int:
    """Known samples in each batch of `share_at`: at least one, and one other."""
    return min(max(round(share * batch_size), 1), batch_size - 1)


def stand_ins(
    seed: int, stage: str, epoch: int, sample: int, pool: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Samples to try, in turn, in the place of one that cannot be read.

    Args:
        seed: the run's seed.
        stage: name of the stream.
        epoch: from 0.
        sample: id of the bad sample, from 0.
        pool: (N,) ids to draw from; the bad one itself is passed over.

    Returns:
        At most `STAND_INS` ids, drawn with replacement; none where the pool holds no other.
    """
    others = pool[pool != sample]
    if not len(others):
        return others
    counter = np.array([0, 0, sample, epoch], np.uint64)
    generator = np.random.Generator(
        np.random.Philox(key=_key(seed, stage, "stand-in"), counter=counter)
    )
    return others[(generator.random(STAND_INS) * len(others)).astype(np.int64)]


@lru_cache(maxsize=8)
def _permutation(seed: int, stage: str, epoch: int, n: int) -> NDArray[np.int64]:
    """Sorting doubles, unlike `Generator.permutation`, is the same in every numpy version."""
    counter = np.array([0, 0, 0, epoch], np.uint64)
    generator = np.random.Generator(
        np.random.Philox(key=_key(seed, stage, "order"), counter=counter)
    )
    return np.argsort(generator.random(n), kind="stable").astype(np.int64)


@lru_cache(maxsize=64)
def _key(seed: int, stage: str, purpose: str) -> NDArray[np.uint64]:
    """128 bits that no two (seed, stage, purpose) share."""
    digest = hashlib.sha256(repr((int(seed), stage, purpose)).encode()).digest()
    return np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)


def _between(uniform: Uniforms, limits: tuple[float, float]) -> Uniforms:
    """[0, 1) to [low, high)."""
    low, high = limits
    return low + (high - low) * uniform


def _parameters(augment: Augment, uniform: Uniforms) -> dict[str, Uniforms]:
    """Inverse transforms of (B, V, UNIFORMS) uniform numbers, by parameter."""
    scale = _between(uniform[..., SCALE], augment.scale)
    if augment.scale_pivot == "corner":
        # The published factor multiplies output coordinates: above 1 it shrinks.
        scale = 1.0 / scale
    angle = _between(uniform[..., ANGLE], augment.rotation)
    if augment.rotation_steps == "integer":
        angle = np.floor(angle)
    left, top, width, height = _crop(augment, uniform)
    color = uniform[..., COLOR] < augment.color
    blur = uniform[..., BLUR] < augment.blur
    return {
        "horizontal_flip": (uniform[..., FLIP_X] < augment.horizontal_flip).astype(float),
        "vertical_flip": (uniform[..., FLIP_Y] < augment.vertical_flip).astype(float),
        "brightness": _between(uniform[..., BRIGHTNESS], augment.brightness),
        "scale": scale,
        "angle": angle,
        "crop_left": left,
        "crop_top": top,
        "crop_width": width,
        "crop_height": height,
        "color_brightness": np.where(
            color, _between(uniform[..., COLOR_BRIGHTNESS], augment.color_brightness), 1.0
        ),
        "color_contrast": np.where(
            color, _between(uniform[..., COLOR_CONTRAST], augment.color_contrast), 1.0
        ),
        "blur_sigma": np.where(blur, _between(uniform[..., BLUR_SIGMA], augment.blur_sigma), 0.0),
    }


def _crop(augment: Augment, uniform: Uniforms) -> tuple[Uniforms, ...]:
    """The first of the tries that fits the canvas, else all of it: left, top, width, height."""
    tries = uniform[..., CROP_TRIES : CROP_TRIES + 2 * augment.crop_tries]
    area = _between(tries[..., 0::2], augment.crop_area)
    low, high = np.log(augment.crop_ratio[0]), np.log(augment.crop_ratio[1])
    ratio = np.exp(_between(tries[..., 1::2], (low, high)))
    widths, heights = np.sqrt(area * ratio), np.sqrt(area / ratio)
    fits = (widths <= 1.0) & (heights <= 1.0)
    first = np.argmax(fits, axis=-1)[..., None]
    fitting = fits.any(axis=-1)
    width = np.where(fitting, np.take_along_axis(widths, first, -1)[..., 0], 1.0)
    height = np.where(fitting, np.take_along_axis(heights, first, -1)[..., 0], 1.0)
    left = uniform[..., CROP_LEFT] * (1.0 - width)
    top = uniform[..., CROP_TOP] * (1.0 - height)
    if augment.crop_box == "published":
        # (row, column, height, width) given where (left, top, right, bottom) is wanted.
        return top, left, height - top, width - left
    return left, top, width, height
