"""Whether two sets of films differ, by permutation: scores, embeddings, facts of headers.

Every test compares means of one vector per patient: of whether its scores are up to each value
(Anderson and Darling; Scholz and Stephens, 1987), of the features of a kernel (maximum mean
discrepancy; Gretton et al., 2012), of which kind it is (a chi-square). Patients are dealt anew to
the two sets, each with all of its films, and p = (1 + how often the difference is as large) /
(1 + permutations): valid for any number of films, with ties, and with several films a patient.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from selftaught.evaluation.statistics import holm

LIMIT = 1000  # films of a set; of more a sample of patients is taken
FEWEST = 5
GRID = 1000
CHUNK = 256  # permutations at a time


@dataclass(frozen=True, kw_only=True)
class Films:
    """Values of films of one set.

    Attributes:
        values: (N,) numbers or text, or (N, W) features.
        patients: (N,) whole numbers, films of a patient share one; None: each its own.
    """

    values: np.ndarray
    patients: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Test:
    """One comparison.

    Attributes:
        name: of what is compared.
        p: p-value; None where it cannot be compared.
        adjusted: by Holm, over all tests of the run.
        films: of this set, and of the other.
        words: what was seen, or why nothing can be compared.
        alarm: whether the adjusted value is at most the rate of alarms.
    """

    name: str
    p: float | None = None
    adjusted: float | None = None
    films: tuple[int, int] = (0, 0)
    words: str = ""
    alarm: bool = False


def permutations(alarm_rate: float, tests: int) -> int:
    """How many are needed so that the smallest p-value is a tenth of what raises an alarm."""
    return max(999, math.ceil(10 * tests / alarm_rate) - 1)


def judged(tests: Sequence[Test], alarm_rate: float) -> list[Test]:
    """The tests with p-values adjusted by Holm (1979): any false alarm has that rate at most."""
    from dataclasses import replace

    adjusted = holm([test.p for test in tests])
    return [
        replace(test, adjusted=p, alarm=p is not None and p <= alarm_rate)
        for test, p in zip(tests, adjusted, strict=True)
    ]


def of_numbers(here: Films, there: Films, count: int, seed: int) -> float:
    """p-value of two sets of numbers by the statistic of Anderson and Darling.

    It sums the squared differences of the distributions over their variance, and so finds more
    shifts, and more changes of the tails, than their largest difference does.
    """
    values = np.unique(np.concatenate([here.values, there.values]))
    if len(values) > GRID:
        values = values[np.linspace(0, len(values) - 1, GRID).round().astype(int)]
    vectors, first = _units(here, there, seed, lambda x: (x[:, None] <= values).astype(float))
    share = vectors.mean(axis=0)
    steps, variance = np.diff(share, prepend=0.0), share * (1 - share)
    inside = variance > 1e-9  # not so above the last value, nor where no film was drawn
    steps, vectors = steps[inside] / variance[inside], vectors[:, inside]

    def distance(weights: np.ndarray) -> np.ndarray:
        return np.square(weights @ vectors) @ steps

    return _p_value(distance, first, len(vectors), count, seed)


def of_kinds(here: Films, there: Films, count: int, seed: int) -> float:
    """p-value of two sets of words by a chi-square of their shares."""
    kinds, shares = np.unique(np.concatenate([here.values, there.values]), return_counts=True)
    scale = np.sqrt(len(here.values) + len(there.values)) / np.sqrt(shares)
    vectors, first = _units(here, there, seed, lambda x: (x[:, None] == kinds) * scale)
    return _p_value(
        lambda weights: np.square(weights @ vectors).sum(axis=1), first, len(vectors), count, seed
    )


def of_features(here: Films, there: Films, count: int, seed: int) -> float:
    """p-value of two sets of features by the squared maximum mean discrepancy.

    The kernel is Gaussian, as wide as the median distance of films.
    """
    rows, owners, first = _drawn(here, there, seed)
    x = rows.astype(np.float64)
    lengths = np.square(x).sum(axis=1)
    squares = np.maximum(lengths[:, None] + lengths - 2 * x @ x.T, 0)
    between = squares[~np.eye(len(x), dtype=bool)]
    middle = float(np.median(between)) if len(between) else 0.0
    mean = _mean_of_units(owners)
    kernel = mean @ np.exp(-squares / (middle or 1.0)) @ mean.T

    def discrepancy(weights: np.ndarray) -> np.ndarray:
        return ((weights @ kernel) * weights).sum(axis=1)

    return _p_value(discrepancy, first, len(kernel), count, seed)


def _p_value(
    statistic: Callable[[np.ndarray], np.ndarray], first: int, units: int, count: int, seed: int
) -> float:
    """Deal the units anew; the first `first` of them are one set.

    Args:
        statistic: of weights (R, U), 1 / n in one set and -1 / m in the other, (R,).
        first: units of the first set.
        units: of both.
        count: permutations.
        seed: of them.
    """
    weights = np.full(units, -1 / (units - first))
    weights[:first] = 1 / first
    observed = float(statistic(weights[None])[0])
    # Sums in another order differ in their last digits, and equal differences have to count.
    bar = observed - 1e-9 * (1 + observed)
    generator, as_large, left = np.random.default_rng(seed), 0, count
    while left:
        rows = min(CHUNK, left)
        dealt = generator.permuted(np.tile(weights, (rows, 1)), axis=1)
        as_large += int((statistic(dealt) >= bar).sum())
        left -= rows
    return (1 + as_large) / (1 + count)


def _units(
    here: Films, there: Films, seed: int, vectors: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, int]:
    """The mean vector of each patient, and how many are of the first set."""
    values, owners, first = _drawn(here, there, seed)
    return _mean_of_units(owners) @ vectors(values), first


def _drawn(here: Films, there: Films, seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Values, the number of the patient of each, and how many patients are of the first set."""
    values, owners = [], []
    counts: list[int] = []
    for films in (here, there):
        names = np.arange(len(films.values)) if films.patients is None else films.patients
        unique, place = np.unique(names, return_inverse=True)
        generator = np.random.default_rng([seed, len(counts)])
        order = generator.permutation(len(unique))
        total = np.cumsum(np.bincount(place)[order])
        kept = np.sort(order[: max(1, np.searchsorted(total, LIMIT, side="right"))])
        rows = np.isin(place, kept)
        owners.append(np.searchsorted(kept, place[rows]) + sum(counts))
        values.append(films.values[rows])
        counts.append(len(kept))
    return np.concatenate(values), np.concatenate(owners), counts[0]


def _mean_of_units(owners: np.ndarray) -> np.ndarray:
    """(U, N), by which values of films become means of patients."""
    chosen = (owners == np.arange(owners.max() + 1)[:, None]).astype(float)
    return chosen / chosen.sum(axis=1, keepdims=True)
