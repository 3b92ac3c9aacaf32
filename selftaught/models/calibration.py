"""What a raw score means: percentile among normal images, and the threshold that flags."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pandas.arrays import IntegerArray
from torch import Tensor

from selftaught.arguments import numbers_in, real
from selftaught.errors import require

Scores = Sequence[float] | np.ndarray | Tensor


@dataclass(frozen=True)
class Calibration:
    """Scores of normal validation images, and the score above which an image is flagged.

    Attributes:
        threshold: in the unit of the scores; None where no image is flagged nor cleared.
        normal_scores: of normal validation images, or of the site's own normal films, rising.
        patients: number of the patient of each normal score, in no order that means anything;
            () = each film is a patient of its own.
    """

    threshold: float | None = None
    normal_scores: tuple[float, ...] = ()
    patients: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Keep Python's own numbers, which a model can store."""
        if self.threshold is not None:
            threshold = real(self.threshold)
            fine = math.isfinite(threshold)
            require("threshold", self.threshold, "a finite number or None", fine)
            object.__setattr__(self, "threshold", threshold)
        scores = tuple(_vector(self.normal_scores, "normal_scores").tolist())
        object.__setattr__(self, "normal_scores", scores)
        fine = len(self.patients) in (0, len(scores))
        fine = fine and all(type(one) is int and one >= 0 for one in self.patients)
        require("patients", self.patients, "a whole number for each normal score, or none", fine)

    @property
    def weights(self) -> np.ndarray:
        """(N,) what each normal score counts: 1 / (films of its patient)."""
        if not self.patients:
            return np.ones(len(self.normal_scores))
        _, place, films = np.unique(self.patients, return_inverse=True, return_counts=True)
        return 1.0 / films[place]

    @classmethod
    def from_normals(cls, scores: Scores, quantile: float = 0.95) -> "Calibration":
        """Set the threshold so that few normal images are flagged.

        It is the smallest observed score t such that at least `quantile` of the normal scores are
        <= t; an image is flagged when its score is strictly greater. So at most 1 - `quantile` of
        these normal images are flagged, ties included. With fewer than 1 / (1 - quantile) normal
        images (20 for 0.95) t is their largest score, and the share of normal images flagged later
        is then not controlled: expect about 1 / (n + 1).

        Args:
            scores: (N,) finite scores of normal validation images, in any order.
            quantile: share of them that must not be flagged, in (0, 1].

        Returns:
            The calibration; without a threshold when there is no normal image.

        Raises:
            ValueError: quantile outside (0, 1], or a score that is not finite.
        """
        share = real(quantile)
        if not 0 < share <= 1:
            raise ValueError(f"quantile: {quantile!r}, allowed: above 0, up to 1")
        ordered = np.sort(_vector(scores, "normal_scores"))
        if not np.isfinite(ordered).all():
            bad = ordered[~np.isfinite(ordered)][0]
            raise ValueError(f"normal_scores: hold {bad}, allowed: finite numbers")
        # 0.95 * 40 is 38.0 but 0.55 * 100 is 55.00000000000001: rounding must not move the rank.
        rank = max(1, int(np.ceil(share * len(ordered) - 1e-9)))
        return cls(float(ordered[rank - 1]) if len(ordered) else None, tuple(ordered.tolist()))

    def percentiles(self, scores: Scores) -> np.ndarray:
        """Share of normal validation images that score no higher, in percent.

        A tie counts as "no higher": a score equal to the largest normal one is at 100, one below
        all of them at 0. The result moves in steps of 100 / N, so with few normal images it is
        coarse: 12 images tell percentiles apart only to about 8 points.

        Args:
            scores: (M,) scores to place; NaN = none.

        Returns:
            (M,) float64 in [0, 100]; NaN without a score, and everywhere without normal images.
        """
        placed = _vector(scores, "scores")
        if not self.normal_scores:
            return np.full(len(placed), np.nan)
        below = np.searchsorted(np.asarray(self.normal_scores), placed, side="right")
        return np.where(np.isnan(placed), np.nan, 100.0 * below / len(self.normal_scores))

    def p_values(self, scores: Scores) -> np.ndarray:
        """Conformal p-values: (1 + number of normal scores >= score) / (1 + number of them).

        Of a new normal film it is at most a with probability at most a, for every a, ties and few
        normals included (Vovk, Gammerman and Shafer, 2005); it is never below 1 / (1 + number).
        With `patients` these are counted and not films: a patient counts by the share of its
        films, and the promise is that of a film of a new patient (two layers of exchangeability;
        Dunn, Wasserman and Ramdas, 2022; Lee, Barber and Willett, 2023).

        Args:
            scores: (M,) scores to judge; NaN = none.

        Returns:
            (M,) float64 in (0, 1]; NaN without a score, and everywhere without normal images.
        """
        placed = _vector(scores, "scores")
        if not self.normal_scores:
            return np.full(len(placed), np.nan)
        normals = np.asarray(self.normal_scores)
        weights = self.weights
        above = np.append(np.cumsum(weights[::-1])[::-1], 0.0)
        above = above[np.searchsorted(normals, placed, side="left")]
        return np.where(np.isnan(placed), np.nan, (1 + above) / (1 + weights.sum()))

    def flagged(self, scores: Scores) -> IntegerArray:
        """1 where a score is above the threshold, else 0.

        Args:
            scores: (M,) scores; NaN = none.

        Returns:
            (M,) Int8; missing without a score, and everywhere without a threshold.
        """
        values = _vector(scores, "scores")
        above = values > (math.inf if self.threshold is None else self.threshold)
        missing = np.isnan(values) | (self.threshold is None)
        return IntegerArray(above.astype(np.int8), missing)

    def facts(self) -> dict[str, Any]:
        """What a model stores, as JSON values."""
        facts = {"threshold": self.threshold, "normal_scores": list(self.normal_scores)}
        return {**facts, "patients": list(self.patients)} if self.patients else facts

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> "Calibration":
        """What `facts` gave.

        Raises:
            KeyError: something is missing.
            ValueError: the threshold or a score is no finite number, or the patients are not those
                of the scores.
        """
        threshold, scores = facts["threshold"], facts["normal_scores"]
        patients = facts.get("patients", [])
        if threshold is not None and not _is_number(threshold):
            raise ValueError(f"threshold is {threshold!r}; allowed: a finite number or null")
        for name, values in (("normal_scores", scores), ("patients", patients)):
            if not isinstance(values, list) or not all(map(_is_number, values)):
                raise ValueError(f"{name}: allowed: a list of finite numbers")
        if patients and sorted(scores) != scores:
            raise ValueError("normal_scores: allowed beside patients: rising numbers")
        return cls(threshold, tuple(sorted(map(float, scores))), tuple(patients))


def _vector(values: Scores, name: str) -> np.ndarray:
    """`values` as a float64 vector."""
    array: np.ndarray = numbers_in(name, values).double().cpu().numpy()
    if array.ndim != 1:
        raise ValueError(f"{name}: shape {array.shape}, allowed: (N,)")
    return array


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
