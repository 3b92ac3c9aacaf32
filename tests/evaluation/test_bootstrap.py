import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from selftaught.evaluation.bootstrap import auroc_interval, auroc_resamples, weighted_auroc


@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_weighted_auroc_equals_sklearn_with_ties(decimals):
    generator = np.random.default_rng(decimals)
    labels = generator.integers(2, size=151)
    scores = np.round(generator.normal(size=151) + labels, decimals)
    weights = generator.integers(4, size=(9, 151))
    expected = [roc_auc_score(labels, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(weighted_auroc(labels, scores, weights), expected, rtol=1e-12)


def test_weighted_auroc_equals_repeating_images():
    generator = np.random.default_rng(0)
    labels, scores = generator.integers(2, size=40), generator.integers(6, size=40) / 2
    counts = generator.integers(3, size=40)
    repeated = roc_auc_score(np.repeat(labels, counts), np.repeat(scores, counts))
    assert weighted_auroc(labels, scores, counts[None])[0] == pytest.approx(repeated, abs=1e-12)


def test_weighted_auroc_without_one_label_is_nan():
    weights = np.array([[1, 1, 0], [1, 1, 1], [0, 0, 1]])
    values = weighted_auroc(np.array([0, 0, 1]), np.array([1.0, 2.0, 2.0]), weights)
    np.testing.assert_array_equal(values, [np.nan, 0.75, np.nan])


def test_interval_equals_a_plain_loop_over_groups():
    generator = np.random.default_rng(1)
    labels = generator.integers(2, size=120)
    scores = np.round(generator.normal(size=120) + labels, 1)
    groups = np.array([f"p{i % 31:02d}" for i in range(120)])
    names = np.unique(groups)
    draws, values = np.random.default_rng([5, 6]), []
    for start in (0, 64, 128):
        chosen = draws.integers(31, size=(min(64, 150 - start), 31))
        for row in chosen:
            index = np.concatenate([np.flatnonzero(groups == names[i]) for i in row])
            values.append(roc_auc_score(labels[index], scores[index]))
    expected = np.percentile(values, [2.5, 97.5])
    found = auroc_interval(labels, scores, groups, seed=[5, 6], resamples=150)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_copies_within_a_group_widen_the_interval_as_they_should():
    # Every image four times: as many groups as before, so the same interval, not one half as wide.
    generator = np.random.default_rng(2)
    labels = generator.integers(2, size=100)
    scores, groups = generator.normal(size=100) + labels, np.arange(100)
    once = auroc_interval(labels, scores, groups, seed=0)
    four = auroc_interval(np.repeat(labels, 4), np.repeat(scores, 4), np.repeat(groups, 4), seed=0)
    np.testing.assert_allclose(once, four, rtol=1e-12)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    # AUROC of N(1, 1) against N(0, 1) is Phi(1 / sqrt 2) = 0.7602.
    generator, covered = np.random.default_rng(3), 0
    for trial in range(200):
        labels = np.repeat([0, 1], 60)
        scores = generator.normal(size=120) + labels
        low, high = auroc_interval(labels, scores, np.arange(120), seed=trial, resamples=200)
        covered += low <= 0.7602 <= high
    assert 180 <= covered <= 198


def test_too_few_groups_and_bad_resamples():
    labels, scores = np.array([0, 0, 1, 1]), np.arange(4.0)
    assert auroc_interval(labels, scores, np.array([0, 1, 2, 2]), seed=0) is None
    with pytest.raises(ValueError, match="resamples: 0"):
        auroc_interval(labels, scores, np.arange(4), seed=0, resamples=0)


def test_resamples_are_the_same_patients_whatever_scores_them_and_in_whatever_order():
    generator = np.random.default_rng(4)
    labels, groups = generator.integers(2, size=80), generator.integers(25, size=80)
    scores = np.round(generator.normal(size=80) + labels, 1)
    settings = {"seed": 0, "resamples": 100}
    values = auroc_resamples(labels, scores, groups, **settings)
    order = generator.permutation(80)
    shuffled = auroc_resamples(labels[order], scores[order], groups[order], **settings)
    np.testing.assert_array_equal(values, shuffled)
    # A system that orders the images alike differs from this one in no resample.
    np.testing.assert_array_equal(values, auroc_resamples(labels, 3 * scores, groups, **settings))
    assert values.std() > 0


def test_one_patient_has_no_resamples():
    labels, scores = np.array([0, 1, 0, 1]), np.arange(4.0)
    assert auroc_resamples(labels, scores, np.zeros(4), seed=0, resamples=10) is None
    assert auroc_interval(labels, scores, np.zeros(4), seed=0) is None
