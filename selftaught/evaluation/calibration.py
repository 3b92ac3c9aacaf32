"""What a raw score means: percentile among normal images, and the threshold that flags."""

from collections.abc import Sequence

import numpy as np


def _scores(values: Sequence[float] | np.ndarray, name: str) -> np.ndarray:
    """`values` as a float64 vector of finite numbers."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name}: shape {array.shape}, allowed: (N,)")
    if not np.isfinite(array).all():
        bad = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(f"{name}: holds {array[bad]} at position {bad}, allowed: finite numbers")
    return array


def threshold_from_normals(
    normal_scores: Sequence[float] | np.ndarray, quantile: float = 0.95
) -> float | None:
    """The score above which an image is flagged.

    The smallest observed score t such that at least `quantile` of the normal scores are <= t; an
    image is flagged when its score is strictly greater. So at most 1 - `quantile` of these normal
    images are flagged, ties included. With fewer than 1 / (1 - quantile) normal images (20 for
    0.95) t is their largest score, and the share of normal images flagged later is then not
    controlled: expect about 1 / (n + 1).

    Args:
        normal_scores: (N,) finite scores of normal validation images.
        quantile: share of them that must not be flagged, in (0, 1].

    Returns:
        The threshold in the unit of the scores; None when there is no normal image.

    Raises:
        ValueError: quantile outside (0, 1], or a score that is not finite.
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile: {quantile}, allowed: above 0, up to 1")
    ordered = np.sort(_scores(normal_scores, "normal_scores"))
    if not len(ordered):
        return None
    # 0.95 * 40 is 38.0 but 0.55 * 100 is 55.00000000000001: rounding must not move the rank.
    rank = max(1, int(np.ceil(quantile * len(ordered) - 1e-9)))
    return float(ordered[rank - 1])


def percentiles(
    scores: Sequence[float] | np.ndarray, normal_scores: Sequence[float] | np.ndarray
) -> np.ndarray:
    """Share of normal validation images that score no higher, in percent.

    A tie counts as "no higher": a score equal to the largest normal one is at 100, one below all
    of them at 0. The result moves in steps of 100 / N, so with few normal images it is coarse: 12
    images tell percentiles apart only to about 8 points.

    Args:
        scores: (M,) finite scores to place.
        normal_scores: (N,) finite scores of normal validation images.

    Returns:
        (M,) float64 in [0, 100]; all NaN when there is no normal image.

    Raises:
        ValueError: a score that is not finite.
    """
    placed = _scores(scores, "scores")
    ordered = np.sort(_scores(normal_scores, "normal_scores"))
    if not len(ordered):
        return np.full(len(placed), np.nan)
    return 100.0 * np.searchsorted(ordered, placed, side="right") / len(ordered)
