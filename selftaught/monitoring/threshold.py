"""Thresholds that keep a wished rate of false alarms or sensitivity at a site, with intervals.

A film is flagged when its score is above the threshold. With n normal scores S_(1) <= ... <= S_(n)
and a wished rate a, the threshold is S_(k), k = ceil((1 - a) (n + 1)): a new normal film is above
it with probability (n + 1 - k) / (n + 1) <= a at the most, ties and few films included, if it and
the n are exchangeable (Vovk, Gammerman and Shafer, 2005): that is a conformal p-value of a or less.
Films of one patient are not exchangeable with those of others. Where patients are known each counts
1, its films 1 / (their number) each, and n is the number of patients: the promise is then that of a
film of a new patient (Lee, Barber and Willett, 2023).
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from selftaught.errors import InputError, require
from selftaught.models.calibration import Calibration

CONFIDENCE = 0.95
ROUNDING = 1e-9  # of sums of weights that are fractions


@dataclass(frozen=True, kw_only=True)
class Share:
    """The share of films above a threshold, and what it may be in the long run.

    Attributes:
        share: in 0-1; each patient counts once.
        interval: of the long-run share, of Clopper and Pearson, with confidence 0.95.
        films: how many.
        units: patients, or films where none is known.
    """

    share: float
    interval: tuple[float, float]
    films: int
    units: int


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A threshold with what it does on the films it was chosen by.

    Attributes:
        calibration: threshold and normal scores.
        false_alarms: share of normal films above it.
        sensitivity: share of abnormal films above it; None without such.
    """

    calibration: Calibration
    false_alarms: Share
    sensitivity: Share | None = None

    def facts(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: one for name, one in asdict(self).items() if name != "calibration"}


def for_false_alarms(scores: np.ndarray, rate: float, patients: np.ndarray | None = None) -> Choice:
    """The threshold that a new normal film is above with probability `rate` at the most.

    Args:
        scores: (N,) finite float32 scores of normal films.
        rate: wished rate of false alarms, above 0 and below 1.
        patients: (N,) patient of each film, any hashable; None: unknown.

    Raises:
        ValueError: `rate` is out of range.
        InputError: too few films or patients for the rate.
    """
    normals = _ordered(scores, patients)
    rank = _rank(normals, "false_alarms", rate, rate, "normal", patients is not None)
    threshold = normals.normal_scores[rank]
    return Choice(
        calibration=replace(normals, threshold=threshold),
        false_alarms=_above(threshold, normals),
    )


def for_sensitivity(
    normal: np.ndarray,
    abnormal: np.ndarray,
    sensitivity: float,
    patients: tuple[np.ndarray, np.ndarray] | None = None,
) -> Choice:
    """The threshold that a new abnormal film is above with probability `sensitivity` at least.

    The same rule on the other side: the threshold lies right below the k-th smallest score of the m
    abnormal films, k = floor((1 - sensitivity) (m + 1)).

    Args:
        normal: (N,) finite float32 scores of normal films.
        abnormal: (M,) of abnormal ones.
        sensitivity: wished, above 0 and below 1.
        patients: (N,) and (M,) patient of each film; None: unknown.

    Raises:
        ValueError: `sensitivity` is out of range.
        InputError: too few films or patients.
    """
    own, others = patients or (None, None)
    falling = _ordered(-np.asarray(abnormal), others)
    missed, known = 1 - sensitivity, others is not None
    rank = _rank(falling, "sensitivity", sensitivity, missed, "abnormal", known)
    lowest = np.float32(-falling.normal_scores[rank])
    # In float32, as scores are: an equal score has to be above it wherever it is compared.
    threshold = float(np.nextafter(lowest, np.float32(-np.inf), dtype=np.float32))
    normals = _ordered(normal, own)
    return Choice(
        calibration=replace(normals, threshold=threshold),
        false_alarms=_above(threshold, normals),
        sensitivity=_above(threshold, _ordered(abnormal, others)),
    )


def share_interval(count: float, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Interval of a share by Clopper and Pearson (1934): exact for `count` of n independent units.

    Where each unit is a patient that adds a share of its films it is at most too wide, as a share
    varies less than a yes or no of the same mean. Of a threshold at the k-th of n normal scores the
    long-run share above it is distributed Beta(n + 1 - k, k), whose upper quantile is this upper
    end; that the threshold was chosen by the same scores costs nothing.

    Args:
        count: how many, 0 to n; sums of shares too.
        n: of how many, 1 or more.
        confidence: in (0, 1).
    """
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low = float(betaincinv(count, n - count + 1, tail)) if count > ROUNDING else 0.0
    high = float(betaincinv(count + 1, n - count, 1 - tail)) if count < n - ROUNDING else 1.0
    return low, high


def _ordered(scores: np.ndarray, patients: np.ndarray | None) -> Calibration:
    """Rising scores with their patients, by number; none where each has one film."""
    order = np.argsort(scores, kind="stable")
    rising = tuple(np.asarray(scores)[order].tolist())
    if patients is None or len(set(patients.tolist())) == len(rising):
        return Calibration(None, rising)
    numbers = np.unique(patients, return_inverse=True)[1]
    return Calibration(None, rising, tuple(numbers[order].tolist()))


def _rank(
    films: Calibration, option: str, value: float, rate: float, label: str, patients: bool
) -> int:
    """Position of the lowest of the rising scores that few enough lie above."""
    require(option, value, "above 0, below 1", bool(0 < rate < 1))
    scores, weights = np.array(films.normal_scores), films.weights
    units = round(weights.sum())
    least = math.ceil(1 / rate - 1 - ROUNDING)
    if units < least:
        what = f"patients with {label} films" if patients else f"{label} films"
        raise InputError(
            f"{option} {value:g} needs {least} {what} at least, and here are {units}; allowed: "
            f"more of them, or {option} {'up to' if option == 'sensitivity' else 'of'} "
            f"{_reachable(option, units)}"
        )
    # Of equal scores none lies above the others.
    last = np.searchsorted(scores, scores, side="right")
    above = np.append(np.cumsum(weights[::-1])[::-1], 0.0)[last]
    return int(np.argmax((1 + above) / (1 + units) <= rate + ROUNDING))


def _reachable(option: str, units: int) -> str:
    """The strictest value of an option that so few units allow, rounded to its safe side."""
    digits, least = 4, 1 / (1 + units)
    if option == "sensitivity":
        return f"{math.floor((1 - least) * 10**digits) / 10**digits:g}"
    return f"{math.ceil(least * 10**digits) / 10**digits:g} or more"


def _above(threshold: float, films: Calibration) -> Share:
    scores, weights = np.array(films.normal_scores), films.weights
    count, units = float(weights[scores > threshold].sum()), round(weights.sum())
    return Share(
        share=count / units,
        interval=share_interval(count, units),
        films=len(scores),
        units=units,
    )
