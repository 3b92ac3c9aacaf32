"""Statistics over replicates, each figure under its own name."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# A9 of the published tools: upper bounds of p, from the strongest evidence to the weakest.
STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"), (0.1, "."))
# A spread below this share of the values is that of their last digits, and none.
ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True)
class Replicates:
    """One figure measured over replicates, in the unit of the figure.

    Attributes:
        n: number of replicates.
        mean: arithmetic mean.
        population_sd: standard deviation with divisor n.
        sample_sd: standard deviation with divisor n - 1; None for one replicate.
        published_plus_minus: 1.96 x population SD, the "+-" of the paper's Table 1. It is not an
            interval of the mean.
        t_interval: 95 % interval of the mean from Student's t; None for one replicate.
    """

    n: int
    mean: float
    population_sd: float
    sample_sd: float | None
    published_plus_minus: float
    t_interval: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class TTest:
    """A two-sided t-test of two sets of replicates.

    Attributes:
        difference: mean of the first set minus mean of the second.
        t: the test statistic; None where nothing varies.
        degrees_of_freedom: of t; None where nothing varies.
        p: two-sided p-value. None where nothing varies: replicates that agree to the last digit are
            the same run twice, and no evidence.
        stars: `stars(p)`, "" without p.
    """

    difference: float
    t: float | None
    degrees_of_freedom: float | None
    p: float | None
    stars: str


def _finite(values: Sequence[float] | np.ndarray, name: str, least: int) -> np.ndarray:
    """`values` as a float64 vector of at least `least` finite numbers."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < least:
        raise ValueError(f"{name}: shape {array.shape}, allowed: ({least} or more,)")
    if not np.isfinite(array).all():
        bad = array[~np.isfinite(array)][0]
        raise ValueError(f"{name}: holds {bad}, allowed: finite numbers")
    return array


def t_interval(
    values: Sequence[float] | np.ndarray, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of the mean from Student's t with n - 1 degrees of freedom.

    Args:
        values: (n,) finite numbers, n >= 2.
        confidence: coverage in (0, 1).

    Returns:
        Lower and upper end, in the unit of `values`.

    Raises:
        ValueError: fewer than two values, a value that is not finite, confidence outside (0, 1).
    """
    from scipy import stats

    array = _finite(values, "values", 2)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: {confidence}, allowed: above 0 and below 1")
    half = stats.t.ppf((1 + confidence) / 2, len(array) - 1) * array.std(ddof=1)
    half /= np.sqrt(len(array))
    return float(array.mean() - half), float(array.mean() + half)


def summarise(values: Sequence[float] | np.ndarray) -> Replicates:
    """Mean and every kind of spread of one figure over replicates.

    Args:
        values: (n,) finite numbers, one per replicate, n >= 1.

    Returns:
        All figures, in the unit of `values`.

    Raises:
        ValueError: no value, or a value that is not finite.
    """
    array = _finite(values, "values", 1)
    population_sd = float(array.std(ddof=0))
    several = len(array) > 1
    return Replicates(
        n=len(array),
        mean=float(array.mean()),
        population_sd=population_sd,
        sample_sd=float(array.std(ddof=1)) if several else None,
        published_plus_minus=1.96 * population_sd,
        t_interval=t_interval(array) if several else None,
    )


def stars(p: float) -> str:
    """Significance mark of a p-value in the convention of the published tools.

    "***" up to 0.001, "**" up to 0.01, "*" up to 0.05, "." up to 0.1, "ns" above.

    Args:
        p: p-value in [0, 1].

    Raises:
        ValueError: p outside [0, 1].
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p: {p}, allowed: 0 to 1")
    return next((mark for bound, mark in STARS if p <= bound), "ns")


def welch_test(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> TTest:
    """Welch's t-test (unequal variances) between two sets of replicates, as in the paper's Table 1.

    Args:
        first: (n,) finite numbers, n >= 2.
        second: (m,) finite numbers, m >= 2, same unit.

    Raises:
        ValueError: fewer than two values in a set, or a value that is not finite.
    """
    a, b = _finite(first, "first", 2), _finite(second, "second", 2)
    return welch_from_summary((a.mean(), a.std(), len(a)), (b.mean(), b.std(), len(b)))


def welch_from_summary(first: tuple[float, float, int], second: tuple[float, float, int]) -> TTest:
    """Welch's t-test from what a table prints of two sets.

    Args:
        first: mean, population SD (the paper's "+-" divided by 1.96) and number of replicates, two
            or more.
        second: the same of the other set.

    Raises:
        ValueError: fewer than two replicates in a set, a negative SD, a value that is not finite.
    """
    from scipy import stats

    sets = {"first": first, "second": second}
    for name, (mean, sd, n) in sets.items():
        if not (np.isfinite(mean) and 0 <= sd < np.inf and n >= 2):
            raise ValueError(
                f"{name}: mean {mean}, SD {sd} of {n}; allowed: finite, 0 or more, of two or more"
            )
    difference = float(first[0] - second[0])
    if all(sd <= ROUNDING * abs(mean) for mean, sd, _ in sets.values()):
        return _without_spread(difference)
    # Of the means: the population SD has divisor n, their variance n - 1.
    variances = [sd**2 / (n - 1) for _, sd, n in sets.values()]
    variance = sum(variances)
    parts = (v**2 / (n - 1) for v, (_, _, n) in zip(variances, sets.values(), strict=True))
    freedom, t = variance**2 / sum(parts), difference / variance**0.5
    return _t_test(difference, t, freedom, 2 * stats.t.sf(abs(t), freedom))


def paired_t_test(
    first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray
) -> TTest:
    """Paired t-test of two sets of replicates that share their seeds.

    Args:
        first: (n,) finite numbers, n >= 2.
        second: (n,) finite numbers in the order of the same seeds.

    Raises:
        ValueError: fewer than two pairs, sets of unequal length, or a value that is not finite.
    """
    from scipy import stats

    a, b = _finite(first, "first", 2), _finite(second, "second", 2)
    if len(a) != len(b):
        raise ValueError(f"second: {len(b)} values, allowed: {len(a)}, one for each of the first")
    difference = float((a - b).mean())
    if (a - b).std() <= ROUNDING * max(np.abs(a).max(), np.abs(b).max()):
        return _without_spread(difference)
    result = stats.ttest_rel(a, b)
    return _t_test(difference, result.statistic, len(a) - 1, result.pvalue)


def _t_test(difference: float, t: float, freedom: float, p: float) -> TTest:
    t, freedom, p = float(t), float(freedom), float(p)
    return TTest(difference=difference, t=t, degrees_of_freedom=freedom, p=p, stars=stars(p))


def _without_spread(difference: float) -> TTest:
    return TTest(difference=difference, t=None, degrees_of_freedom=None, p=None, stars="")


def holm(values: Sequence[float | None]) -> list[float | None]:
    """P-values of a family of tests, adjusted by Holm (1979): the chance of any false rejection.

    Args:
        values: p-values in [0, 1] in any order; None for a test that could not be made, which does
            not count in the family.

    Returns:
        Adjusted values in the same order, None where None was.

    Raises:
        ValueError: a value outside [0, 1].
    """
    known = [(p, place) for place, p in enumerate(values) if p is not None]
    if bad := [p for p, _ in known if not 0 <= p <= 1]:
        raise ValueError(f"values: hold {bad[0]}, allowed: 0 to 1 or None")
    adjusted: list[float | None] = [None] * len(values)
    largest = 0.0
    for passed, (p, place) in enumerate(sorted(known)):
        # The running maximum: no test may come out ahead of one with a smaller p.
        largest = max(largest, min(1.0, (len(known) - passed) * p))
        adjusted[place] = largest
    return adjusted
