import numpy as np
import pytest
from scipy import stats as scipy_stats

from selftaught.evaluation import (
    holm,
    paired_t_test,
    stars,
    summarise,
    t_interval,
    welch_from_summary,
    welch_test,
)


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


# 0.1 + 0.2 - 0.2: equal but for the last digit, which is no spread.
@pytest.mark.parametrize("second", [[0.1, 0.1, 0.1], [0.7, 0.7, 0.7], [0.7, 0.7, 0.1 + 0.6]])
@pytest.mark.parametrize("test", [welch_test, paired_t_test])
def test_nothing_that_varies_gives_no_p(test, second):
    result = test([0.1, 0.1, 0.1 + 0.2 - 0.2], second)
    assert (result.t, result.degrees_of_freedom, result.p, result.stars) == (None, None, None, "")
    assert result.difference == pytest.approx(0.1 - second[0])


def test_one_replicate_is_no_set():
    with pytest.raises(ValueError, match="second: shape"):
        welch_test([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="first: shape"):
        paired_t_test([1.0], [2.0])
    with pytest.raises(ValueError, match="second: mean 2.0, SD 1.0 of 1"):
        welch_from_summary((1.0, 1.0, 2), (2.0, 1.0, 1))
    with pytest.raises(ValueError, match="second: 3 values, allowed: 2"):
        paired_t_test([1.0, 2.0], [1.0, 2.0, 3.0])


def test_welch_equals_scipy():
    a, b = [77.9, 76.8, 77.1, 76.9], [75.1, 75.9, 74.2]
    expected = scipy_stats.ttest_ind(a, b, equal_var=False)
    result = welch_test(a, b)
    found = (result.t, result.degrees_of_freedom, result.p)
    assert found == pytest.approx((expected.statistic, expected.df, expected.pvalue))


def test_paired_by_formula():
    a, b = np.array([77.9, 76.8, 77.1, 76.9]), np.array([75.1, 75.9, 74.2, 76.0])
    t = (a - b).mean() / ((a - b).std(ddof=1) / 2)
    result = paired_t_test(a, b)
    assert (result.difference, result.degrees_of_freedom) == (pytest.approx(1.875), 3)
    assert result.t == pytest.approx(t)
    assert result.p == pytest.approx(2 * scipy_stats.t.sf(abs(t), 3))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9, None]) == [1.0, 1.0, None]
    assert holm([0.02, None]) == [0.02, None]  # what was not tested does not count
    assert holm([]) == []
    with pytest.raises(ValueError, match=r"values: hold 1.5"):
        holm([0.1, 1.5])


def test_holm_equals_its_definition():
    """Holm (1979) steps down: rejects at every level that reaches the adjusted p, else not."""
    generator = np.random.default_rng(0)
    for count in (1, 2, 5, 11):
        values = np.round(generator.random(count) ** 3, 2)  # with ties
        adjusted = holm(values.tolist())
        for level in generator.random(40):
            rejected, order = np.zeros(count, bool), np.argsort(values, kind="stable")
            for passed, place in enumerate(order):
                if values[place] > level / (count - passed):
                    break
                rejected[place] = True
            assert (np.array(adjusted) <= level).tolist() == rejected.tolist()


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
