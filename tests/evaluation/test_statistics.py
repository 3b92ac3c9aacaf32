import numpy as np
import pytest
from scipy import stats as scipy_stats

from selftaught.evaluation import stars, summarise, t_interval, welch_test


def test_summary_by_hand():
    result = summarise([1.0, 2.0, 3.0, 6.0])
    assert (result.n, result.mean) == (4, 3.0)
    assert result.population_sd == pytest.approx(np.sqrt(14 / 4))
    assert result.sample_sd == pytest.approx(np.sqrt(14 / 3))
    assert result.published_plus_minus == pytest.approx(1.96 * np.sqrt(14 / 4))
    # t(0.975, 3) = 3.182446
    half = 3.182446305 * np.sqrt(14 / 3) / 2
    assert result.t_interval == pytest.approx((3 - half, 3 + half))


def test_published_plus_minus_is_not_the_t_interval():
    # For four replicates the t half-width is 1.84 x population SD, the published one 1.96 x.
    result = summarise([77.963, 76.794, 77.106, 76.938])
    half = (result.t_interval[1] - result.t_interval[0]) / 2
    assert half / result.population_sd == pytest.approx(1.837, abs=1e-3)


def test_one_replicate_has_no_spread():
    result = summarise([0.5])
    assert (result.sample_sd, result.t_interval, result.published_plus_minus) == (None, None, 0.0)


@pytest.mark.parametrize("values", [[], [[1.0, 2.0]], [1.0, np.nan], [np.inf]])
def test_bad_values(values):
    with pytest.raises(ValueError, match="values: "):
        summarise(values)


def test_t_interval_against_scipy_and_bounds():
    values = np.array([0.71, 0.74, 0.78, 0.69, 0.75])
    expected = scipy_stats.t.interval(0.9, 4, values.mean(), scipy_stats.sem(values))
    assert t_interval(values, 0.9) == pytest.approx(expected)
    with pytest.raises(ValueError, match="confidence: 1.0"):
        t_interval(values, 1.0)


def test_welch_by_formula():
    a, b = np.array([77.9, 76.8, 77.1, 76.9]), np.array([75.1, 75.9, 74.2])
    va, vb = a.var(ddof=1) / 4, b.var(ddof=1) / 3
    t = (a.mean() - b.mean()) / np.sqrt(va + vb)
    freedom = (va + vb) ** 2 / (va**2 / 3 + vb**2 / 2)
    result = welch_test(a, b)
    assert result.t == pytest.approx(t)
    assert result.degrees_of_freedom == pytest.approx(freedom)
    assert result.p == pytest.approx(2 * scipy_stats.t.sf(abs(t), freedom))
    assert result.difference == pytest.approx(a.mean() - b.mean())
    assert result.stars == stars(result.p)


def test_welch_without_spread():
    assert (welch_test([1, 1], [1, 1]).p, welch_test([1, 1], [1, 1]).t) == (1.0, 0.0)
    assert (welch_test([1, 1], [2, 2]).p, welch_test([1, 1], [2, 2]).t) == (0.0, -np.inf)
    with pytest.raises(ValueError, match="second: shape"):
        welch_test([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("p", "mark"),
    [(1.0, "ns"), (0.1001, "ns"), (0.1, "."), (0.0501, "."), (0.05, "*"), (0.0101, "*"),
     (0.01, "**"), (0.0011, "**"), (0.001, "***"), (0.0, "***")],
)  # fmt: skip
def test_stars(p, mark):
    assert stars(p) == mark


@pytest.mark.parametrize("p", [-0.1, 1.1, np.nan])
def test_stars_refuse(p):
    with pytest.raises(ValueError, match="p: "):
        stars(p)
