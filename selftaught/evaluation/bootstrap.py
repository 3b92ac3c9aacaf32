"""Interval of an AUROC by resampling whole groups."""

import numpy as np

# Resamples handled at once: 64 x 10,500 images are 5 MB of float64, which stays in cache.
CHUNK = 64


def weighted_auroc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC under each of several weightings of the same images, ties counted half.

    Mann-Whitney form: the weighted share of (abnormal, normal) pairs in which the abnormal image
    scores higher; equals sklearn's `roc_auc_score(..., sample_weight=...)`.

    Args:
        labels: (N,) 0 or 1.
        scores: (N,) finite.
        weights: (R, N) non-negative, one row per weighting.

    Returns:
        (R,) float64 in [0, 1]; NaN in a row where either label has no weight.
    """
    order = np.argsort(scores, kind="stable")
    ordered, abnormal = scores[order], np.asarray(labels)[order] == 1
    first = np.searchsorted(ordered, ordered[abnormal], side="left")
    last = np.searchsorted(ordered, ordered[abnormal], side="right")
    sorted_weights = np.asarray(weights, dtype=np.float64)[:, order]
    below = np.zeros((len(sorted_weights), len(ordered) + 1))
    np.cumsum(sorted_weights * ~abnormal, axis=1, out=below[:, 1:])
    on_abnormal = sorted_weights[:, abnormal]
    wins = (on_abnormal * (below[:, first] + below[:, last])).sum(axis=1) / 2
    pairs = on_abnormal.sum(axis=1) * below[:, -1]
    return np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def auroc_resamples(
    labels: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray,
    *,
    seed: int | list[int],
    resamples: int,
) -> np.ndarray | None:
    """AUROC of each resample of a cluster bootstrap.

    Groups (patients) are drawn with replacement, with all their images: images of one patient are
    not independent, and resampling images would give a spread that is too narrow. The same groups
    and seed give the same resamples, in whatever order the images stand and whatever scores them,
    so that two systems' resamples can be subtracted.

    Args:
        labels: (N,) 0 or 1.
        scores: (N,) finite.
        groups: (N,) group of each image, any hashable.
        seed: seed of the draws.
        resamples: number of draws.

    Returns:
        (resamples,) float64, NaN for one that holds one label only; None when a label is found in
        fewer than two groups, or fewer than half of the resamples hold both labels.

    Raises:
        ValueError: resamples below 1.
    """
    if resamples < 1:
        raise ValueError(f"resamples: {resamples}, allowed: 1 or more")
    names, index = np.unique(groups, return_inverse=True)
    if any(len(np.unique(index[labels == label])) < 2 for label in (0, 1)):
        return None
    generator = np.random.default_rng(seed)
    aurocs = []
    for start in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - start)
        drawn = generator.integers(len(names), size=(rows, len(names)))
        drawn += np.arange(rows)[:, None] * len(names)
        counts = np.bincount(drawn.ravel(), minlength=rows * len(names)).reshape(rows, -1)
        aurocs.append(weighted_auroc(labels, scores, counts[:, index]))
    values = np.concatenate(aurocs)
    return None if 2 * np.isfinite(values).sum() < resamples else values


def percentile_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Lower and upper end of the middle `confidence` of the finite ones of (R,) values."""
    tail = 50 * (1 - confidence)
    low, high = np.percentile(values[np.isfinite(values)], [tail, 100 - tail])
    return float(low), float(high)


def auroc_interval(
    labels: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray,
    *,
    seed: int | list[int],
    resamples: int = 1000,
    confidence: float = 0.95,
) -> tuple[float, float] | None:
    """Percentile interval of the AUROC by a cluster bootstrap.

    Args:
        labels: (N,) 0 or 1.
        scores: (N,) finite.
        groups: (N,) group of each image, any hashable.
        seed: seed of the draws; the same seed gives the same interval.
        resamples: number of draws; those that hold one label only are left out.
        confidence: coverage in (0, 1).

    Returns:
        Lower and upper end; None where `auroc_resamples` gives none.

    Raises:
        ValueError: resamples below 1.
    """
    values = auroc_resamples(labels, scores, groups, seed=seed, resamples=resamples)
    return None if values is None else percentile_interval(values, confidence)
