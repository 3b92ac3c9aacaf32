"""Percentile and flag: by counting, with ties, without normal images, without a score."""

import math

import numpy as np
import pytest

from selftaught.models import Calibration


@pytest.mark.parametrize("quantile", [0.5, 0.55, 0.8, 0.9, 0.95, 0.99, 1.0])
@pytest.mark.parametrize("n", [1, 2, 7, 19, 20, 21, 40, 100, 101])
def test_threshold_is_the_smallest_score_that_flags_few_enough(quantile, n):
    normals = np.round(np.random.default_rng(n).normal(size=n), 1)
    threshold = Calibration.from_normals(normals, quantile).threshold
    fits = [t for t in normals if (normals <= t).sum() >= quantile * n - 1e-9]
    assert threshold == min(fits)
    assert (normals > threshold).mean() <= 1 - quantile + 1e-9


def test_few_normals_give_their_largest_score():
    found = Calibration.from_normals([3.0, 1.0, 2.0])
    assert found == Calibration(3.0, (1.0, 2.0, 3.0))
    assert Calibration.from_normals(np.arange(20)).threshold == 18.0


def test_no_normals():
    none = Calibration.from_normals([])
    assert none == Calibration()
    assert np.isnan(none.percentiles([1.0, 2.0])).all()
    assert none.flagged([1.0, 2.0]).isna().all()
    one = Calibration.from_normals([1.0])
    assert one.percentiles([]).shape == one.flagged([]).shape == (0,)


def test_percentiles_by_counting_with_ties():
    generator = np.random.default_rng(0)
    normals, scores = generator.integers(9, size=33), generator.integers(-2, 12, size=50)
    expected = [100 * (normals <= score).mean() for score in scores]
    found = Calibration.from_normals(normals).percentiles(scores)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    ties = Calibration.from_normals([2, 1, 2, 1])
    np.testing.assert_array_equal(ties.percentiles([0, 1, 1.5, 2]), [0, 50, 50, 100])


def test_flagged_means_percentile_above_the_quantile():
    normals = np.random.default_rng(1).normal(size=200)
    calibration = Calibration.from_normals(normals)
    assert calibration.percentiles([calibration.threshold])[0] == 95.0
    flagged = calibration.flagged(normals)
    assert flagged.dtype == "Int8" and flagged.sum() == 10
    np.testing.assert_array_equal(flagged == 1, calibration.percentiles(normals) > 95)
    assert calibration.flagged([calibration.threshold])[0] == 0


def test_no_score_has_neither():
    calibration = Calibration(2.0, (1.0, 2.0, 3.0))
    scores = [math.nan, 5.0, math.nan]
    np.testing.assert_array_equal(calibration.percentiles(scores), [math.nan, 100, math.nan])
    flagged = calibration.flagged(scores)
    assert flagged.isna().tolist() == [True, False, True] and flagged[1] == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_input(bad):
    with pytest.raises(ValueError, match="normal_scores: hold"):
        Calibration.from_normals([1.0, bad])
    with pytest.raises(ValueError, match="scores: shape"):
        Calibration(1.0, (1.0,)).percentiles([[1.0]])


@pytest.mark.parametrize("quantile", [0.0, -1.0, 1.01])
def test_bad_quantile(quantile):
    with pytest.raises(ValueError, match=f"quantile: {quantile}"):
        Calibration.from_normals([1.0], quantile)


def test_it_comes_back_from_what_a_model_stores():
    calibration = Calibration.from_normals([0.1, 1 / 3, 2e-300])
    assert Calibration.from_facts(calibration.facts()) == calibration
    assert Calibration.from_facts(Calibration().facts()) == Calibration()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": "1"}, "threshold is '1'; allowed: a finite number or null"),
        ({"threshold": True}, "threshold is True"),
        ({"threshold": math.inf}, "threshold is inf"),
        ({"normal_scores": [1, "2"]}, "normal_scores: allowed: a list of finite numbers"),
        ({"normal_scores": [math.nan]}, "normal_scores"),
        ({"normal_scores": 3}, "normal_scores"),
    ],
)
def test_what_no_model_stores_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Calibration.from_facts({**Calibration(1.0, (1.0,)).facts(), **changes})
