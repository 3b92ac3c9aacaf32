import numpy as np
import pytest

from selftaught.evaluation import percentiles, threshold_from_normals


@pytest.mark.parametrize("quantile", [0.5, 0.55, 0.8, 0.9, 0.95, 0.99, 1.0])
@pytest.mark.parametrize("n", [1, 2, 7, 19, 20, 21, 40, 100, 101])
def test_threshold_is_the_smallest_score_that_flags_few_enough(quantile, n):
    normals = np.round(np.random.default_rng(n).normal(size=n), 1)
    threshold = threshold_from_normals(normals, quantile)
    fits = [t for t in normals if (normals <= t).sum() >= quantile * n - 1e-9]
    assert threshold == min(fits)
    assert (normals > threshold).mean() <= 1 - quantile + 1e-9


def test_few_normals_give_their_largest_score():
    assert threshold_from_normals([3.0, 1.0, 2.0]) == 3.0
    assert threshold_from_normals(np.arange(20)) == 18.0


def test_no_normals():
    assert threshold_from_normals([]) is None
    assert np.isnan(percentiles([1.0, 2.0], [])).all()
    assert percentiles([], [1.0]).shape == (0,)


def test_percentiles_by_counting_with_ties():
    generator = np.random.default_rng(0)
    normals, scores = generator.integers(9, size=33), generator.integers(-2, 12, size=50)
    expected = [100 * (normals <= score).mean() for score in scores]
    np.testing.assert_allclose(percentiles(scores, normals), expected, rtol=1e-12)
    np.testing.assert_array_equal(percentiles([0, 1, 1.5, 2], [1, 1, 2, 2]), [0, 50, 50, 100])


def test_flagged_means_percentile_above_the_quantile():
    normals = np.random.default_rng(1).normal(size=200)
    threshold = threshold_from_normals(normals)
    assert percentiles([threshold], normals)[0] == 95.0
    assert (percentiles(normals, normals)[normals > threshold] > 95).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_input(bad):
    with pytest.raises(ValueError, match="normal_scores: holds"):
        threshold_from_normals([1.0, bad])
    with pytest.raises(ValueError, match="scores: holds .* at position 1"):
        percentiles([1.0, bad], [1.0])
    with pytest.raises(ValueError, match="scores: shape"):
        percentiles([[1.0]], [1.0])


@pytest.mark.parametrize("quantile", [0.0, -1.0, 1.01])
def test_bad_quantile(quantile):
    with pytest.raises(ValueError, match=f"quantile: {quantile}"):
        threshold_from_normals([1.0], quantile)
