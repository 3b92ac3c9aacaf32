"""Statistics over replicates, each figure under its own name."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# A9 of the published tools: upper bounds of p, from the strongest evidence to the weakest.
STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"), (0.1, "."))


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
class WelchTest:
    """Welch's t-test of two sets of replicates (two-sided, unequal variances).

    Attributes:
        difference: mean of the first set minus mean of the second.
        t: the test statistic.
        degrees_of_freedom: Welch-Satterthwaite.
        p: two-sided p-value.
        stars: `stars(p)`.
    """

    difference: float
    t: float
    degrees_of_freedom: float
    p: float
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


def welch_test(
    first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray
) -> WelchTest:
    """Welch's t-test between two sets of replicates, as in the paper's Table 1.

    Args:
        first: (n,) finite numbers, n >= 2.
        second: (m,) finite numbers, m >= 2, same unit.

    Returns:
        The test. Two sets without any spread give t = +-inf and p = 0 when their means differ,
        t = 0 and p = 1 when they agree.

    Raises:
        ValueError: fewer than two values in a set, or a value that is not finite.
    """
    from scipy import stats

    a, b = _finite(first, "first", 2), _finite(second, "second", 2)
    difference = float(a.mean() - b.mean())
    if a.std() == 0 and b.std() == 0:
        t = float(np.sign(difference) * np.inf) if difference else 0.0
        p = 0.0 if difference else 1.0
        freedom = float(len(a) + len(b) - 2)
    else:
        result = stats.ttest_ind(a, b, equal_var=False)
        t, p, freedom = float(result.statistic), float(result.pvalue), float(result.df)
    return WelchTest(difference=difference, t=t, degrees_of_freedom=freedom, p=p, stars=stars(p))
