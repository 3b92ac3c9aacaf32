"""Thresholds keep their promise on films not yet seen: finite samples, ties, patients."""

import numpy as np
import pytest
from scipy import stats

from selftaught.errors import InputError
from selftaught.models import Calibration
from selftaught.monitoring.threshold import for_false_alarms, for_sensitivity, share_interval


def draws(generator, n, ties):
    values = generator.normal(size=n)
    return (np.round(values, 1) if ties else values).astype(np.float32)


def share_above(thresholds, ties):
    """Of new films of `draws`."""
    if not ties:
        return stats.norm.sf(thresholds)
    grid = np.round(np.arange(-80, 81) / 10, 1)
    weights = stats.norm.cdf(grid + 0.05) - stats.norm.cdf(grid - 0.05)
    return (grid.astype(np.float32) > thresholds[:, None]) @ weights


@pytest.mark.parametrize("n", [19, 20, 38, 39, 99, 100])
def test_the_threshold_is_the_order_statistic_that_keeps_the_expected_rate(n):
    scores = draws(np.random.default_rng(n), n, ties=False)
    rank = int(np.ceil(0.95 * (n + 1) - 1e-9))
    threshold = for_false_alarms(scores, 0.05).calibration.threshold
    assert threshold == np.sort(scores)[rank - 1]
    # One score lower would break it.
    assert (n + 1 - rank) / (n + 1) <= 0.05 < (n + 2 - rank) / (n + 1)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [19, 30])
def test_new_normal_films_are_flagged_at_the_wished_rate_at_the_most(n, ties):
    """The mean over many sites of the true rate, whose standard error is below 0.001."""
    generator = np.random.default_rng(1)
    rates = share_above(
        np.array(
            [
                for_false_alarms(draws(generator, n, ties), 0.05).calibration.threshold
                for _ in range(2000)
            ]
        ),
        ties,
    )
    exact = int(0.05 * (n + 1)) / (n + 1)
    assert np.mean(rates) <= exact + 0.003
    if not ties:
        assert np.mean(rates) == pytest.approx(exact, abs=0.003)


def test_flagged_is_a_p_value_of_the_wished_rate_or_less():
    generator = np.random.default_rng(2)
    for n in (19, 57, 200):
        calibration = for_false_alarms(draws(generator, n, True), 0.05).calibration
        scores = draws(generator, 2000, True)
        flagged = calibration.flagged(scores).to_numpy(dtype=int) == 1
        np.testing.assert_array_equal(flagged, calibration.p_values(scores) <= 0.05)


def test_p_values_by_counting_and_uniform_on_new_normals():
    calibration = Calibration.from_normals([1.0, 2.0, 2.0, 3.0])
    assert calibration.p_values([0, 2, 2.5, 3, 4]) == pytest.approx([1, 0.8, 0.4, 0.4, 0.2])
    assert np.isnan(calibration.p_values([np.nan]))[0]
    assert np.isnan(Calibration().p_values([1.0]))[0]
    generator = np.random.default_rng(3)
    # One film a site: p-values of one list are not independent of each other.
    values = np.array(
        [
            Calibration.from_normals(generator.normal(size=99)).p_values(generator.normal(size=1))
            for _ in range(2000)
        ]
    )
    counts = np.bincount(np.rint(values[:, 0] * 100).astype(int), minlength=101)[1:]
    assert stats.chisquare(counts).pvalue > 0.01
    assert values.min() == pytest.approx(0.01)


def of_patients(generator, patients, alike=0.9):
    """Scores of 1 to 12 films a patient that are alike, and whose they are."""
    films = generator.integers(1, 13, size=patients)
    owners = np.repeat(np.arange(patients), films)
    own = generator.normal(size=patients)[owners] * np.sqrt(alike)
    return (own + np.sqrt(1 - alike) * generator.normal(size=len(owners))).astype(
        np.float32
    ), owners


def test_patients_count_and_not_films():
    """True rates, by the normal distribution: 20 patients with many films are not 130 films."""
    generator = np.random.default_rng(4)
    rates, covered, ignored = [], [], []
    for _ in range(600):
        scores, owners = of_patients(generator, 20)
        choice = for_false_alarms(scores, 0.05, owners)
        rates.append(stats.norm.sf(choice.calibration.threshold))
        low, high = choice.false_alarms.interval
        covered.append(low <= rates[-1] <= high)
        naive = for_false_alarms(scores, 0.05)
        low, high = naive.false_alarms.interval
        ignored.append(low <= stats.norm.sf(naive.calibration.threshold) <= high)
    assert np.mean(rates) <= 0.05 and np.mean(covered) >= 0.95
    assert np.mean(ignored) < 0.85  # what is at stake


def test_p_values_of_new_patients_are_no_smaller_than_they_should_be():
    generator = np.random.default_rng(5)
    values = []
    for _ in range(600):
        scores, owners = of_patients(generator, 19)
        calibration = for_false_alarms(scores, 0.05, owners).calibration
        values.append(calibration.p_values(generator.normal(size=1))[0])
    for rate in (0.05, 0.1, 0.25):
        assert np.mean(np.array(values) <= rate) <= rate + 2.6 * np.sqrt(rate / 600)


@pytest.mark.parametrize(("n", "rate"), [(100, 0.05), (19, 0.05), (150, 0.1)])
def test_the_interval_holds_the_true_rate(n, rate):
    generator = np.random.default_rng(6)
    covered = []
    for _ in range(500):
        choice = for_false_alarms(draws(generator, n, False), rate)
        low, high = choice.false_alarms.interval
        covered.append(low <= stats.norm.sf(choice.calibration.threshold) <= high)
    assert np.mean(covered) >= 0.93


def test_the_interval_is_that_of_clopper_and_pearson():
    for count, n in ((0, 20), (3, 40), (40, 40)):
        known = stats.binomtest(count, n).proportion_ci(0.95, method="exact")
        assert share_interval(count, n) == pytest.approx((known.low, known.high))


@pytest.mark.parametrize("ties", [False, True])
def test_new_abnormal_films_are_flagged_at_the_wished_rate_at_least(ties):
    generator = np.random.default_rng(7)
    thresholds = np.array(
        [
            for_sensitivity(np.zeros(1), draws(generator, 29, ties), 0.9).calibration.threshold
            for _ in range(2000)
        ]
    )
    reached = share_above(thresholds, ties).mean()
    assert reached >= 0.9 - 0.003
    if not ties:
        assert reached == pytest.approx(0.9, abs=0.004)


def test_the_threshold_of_a_sensitivity_flags_its_own_score_in_single_precision():
    scores = np.float32([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    choice = for_sensitivity(np.float32([0.0]), scores, 0.9)
    assert (scores > np.float32(choice.calibration.threshold)).all()
    assert choice.sensitivity.share == 1 and choice.false_alarms.share == 0


@pytest.mark.parametrize(
    ("n", "rate", "patients", "message"),
    [
        (18, 0.05, None, "false_alarms 0.05 needs 19 normal films at least, and here are 18"),
        (98, 0.01, None, "needs 99 normal films"),
        (40, 0.05, np.arange(40) // 4, "needs 19 patients with normal films at least, and here a"),
    ],
)
def test_too_few_films_say_how_many_are_needed(n, rate, patients, message):
    with pytest.raises(InputError, match=message):
        for_false_alarms(np.zeros(n, np.float32), rate, patients)
    with pytest.raises(InputError, match="sensitivity 0.9 needs 9 abnormal films"):
        for_sensitivity(np.zeros(3), np.zeros(8), 0.9)


def test_what_a_refusal_offers_is_taken():
    for n in (5, 18, 33):
        with pytest.raises(InputError) as refused:
            for_false_alarms(np.zeros(n, np.float32), 0.02)
        offered = float(str(refused.value).split(" of ")[-1].split()[0])
        for_false_alarms(np.zeros(n, np.float32), offered)
    with pytest.raises(InputError) as refused:
        for_sensitivity(np.zeros(1), np.zeros(6), 0.95)
    for_sensitivity(np.zeros(1), np.zeros(6), float(str(refused.value).split()[-1]))
