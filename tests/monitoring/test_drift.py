"""Tests of drift: no more alarms than stated on the same films, and alarms on others."""

import itertools

import numpy as np
import pytest
from scipy import stats

from selftaught.monitoring import drift
from selftaught.monitoring.compare import compare
from selftaught.monitoring.drift import Films


def exact(a, b):
    """p-value over all deals by Scholz and Stephens' equation 6, for two samples."""
    pooled = np.concatenate([a, b])
    values, films = np.unique(pooled, return_counts=True)
    below = np.cumsum(films)[:-1]
    found = []
    for rows in itertools.combinations(range(len(pooled)), len(a)):
        first = np.searchsorted(np.sort(pooled[list(rows)]), values[:-1], side="right")
        apart = np.square(len(pooled) * first - len(a) * below)
        found.append((films[:-1] * apart / (below * (len(pooled) - below))).sum())
    return (np.array(found) >= found[0] - 1e-9).mean()


def test_p_values_agree_with_exact_ones_and_those_of_scipy():
    generator = np.random.default_rng(0)
    for a, b in (
        (generator.normal(size=5), generator.normal(size=7)),
        (generator.normal(size=5), generator.normal(1.5, size=7)),
        (np.array([0, 0, 0, 0, 1, 9.0]), np.arange(6.0)),
    ):
        # The films of `b` count twice as patients do, whose films are equal.
        twice = Films(values=np.repeat(b, 2), patients=np.repeat(np.arange(len(b)), 2))
        p = drift.of_numbers(Films(values=a), twice, 4000, 1)
        assert p == pytest.approx(exact(a, b), abs=0.03)
    a, b = np.array(list("xxxxxyyyyz")), np.array(list("xyyyyyyyzz"))
    table = [[(v == kind).sum() for kind in "xyz"] for v in (a, b)]
    known = stats.chi2_contingency(
        table, correction=False,
        method=stats.PermutationMethod(n_resamples=4000, rng=np.random.default_rng(1)),
    )  # fmt: skip
    p = drift.of_kinds(Films(values=a), Films(values=b), 4000, 1)
    assert p == pytest.approx(known.pvalue, abs=0.03)


def test_the_smallest_p_value_counts_the_films_as_they_are():
    far = Films(values=np.arange(30) + 100.0), Films(values=np.arange(30.0))
    assert drift.of_numbers(*far, 99, 1) == 0.01
    rows = np.random.default_rng(0).normal(size=(40, 3))
    assert drift.of_features(Films(values=rows[:20] + 50), Films(values=rows[20:]), 99, 1) == 0.01


def sets(generator, patients, together):
    """Two sets alike; films of a patient are nearly the same."""
    made = []
    for _ in range(2):
        owners = np.repeat(np.arange(patients), 6)
        h = generator.normal(size=(patients, 8))[owners] + 0.1 * generator.normal(
            size=(len(owners), 8)
        )
        kept = owners if together else None
        made.append(
            {
                "scores": Films(values=h[:, 0], patients=kept),
                "embeddings": Films(values=h, patients=kept),
                "bits": Films(values=np.where(h[:, 1] > 0, "8", "16"), patients=kept),
            }
        )
    return made


def alarms(pairs, rate):
    return sum(any(test.alarm for test in compare(*pair, rate)) for pair in pairs)


def test_alarms_on_the_same_films_keep_their_rate_and_patients_matter(monkeypatch):
    monkeypatch.setattr(drift, "permutations", lambda rate, tests: 199)
    generator = np.random.default_rng(1)
    # Of 60 with probability 0.1 each: 12 or more in 1.5 of 100 such tests, had it no slack.
    assert alarms([sets(generator, 15, True) for _ in range(60)], 0.1) <= 11
    assert alarms([sets(generator, 15, False) for _ in range(10)], 0.1) >= 7


def test_a_shift_of_embeddings_or_scores_raises_the_alarm_of_its_name():
    generator = np.random.default_rng(2)
    here, there = sets(generator, 60, True)
    moved = {**here, "embeddings": Films(values=here["embeddings"].values + 0.8)}
    assert [test.name for test in compare(moved, there, 0.01) if test.alarm] == ["embeddings"]
    moved = {**here, "scores": Films(values=here["scores"].values * 3)}
    assert [test.name for test in compare(moved, there, 0.01) if test.alarm] == ["scores"]


def test_what_is_the_same_in_all_films_takes_no_share_of_the_rate():
    generator = np.random.default_rng(3)
    here, there = (
        {
            "scores": Films(values=generator.normal(shift, size=30)),
            "image size": Films(values=np.full(30, 0.25)),
            "bits": Films(values=np.full(30, "8")),
            "view": Films(values=np.full(30, view)),
        }
        for shift, view in ((0.7, "ap"), (0.0, "pa"))
    )
    tests = {test.name: test for test in compare(here, there, 0.05)}
    assert tests["image size"].p is None and tests["bits"].words == "8 100.0 % against 100.0 %"
    # Of scores and view alone: the larger p-value counts once, the other twice.
    assert tests["scores"].adjusted == tests["scores"].p > tests["view"].p
    assert tests["view"].adjusted == 2 * tests["view"].p and tests["view"].alarm


def test_what_is_not_known_is_not_tested_and_no_kind_of_few_films_is_shown():
    here = {
        "bits": Films(values=np.array(["8"] * 40 + ["doe john"])),
        "scores": Films(values=np.arange(3.0)),
    }
    there = {**here, "scores": Films(values=np.arange(50.0))}
    tests = {test.name: test for test in compare(here, there, 0.01)}
    assert tests["scores"].p is None and "known of 3" in tests["scores"].words
    assert tests["embeddings"].words == "not known of these films"
    assert tests["bits"].p == tests["bits"].adjusted == 1.0 and "doe" not in tests["bits"].words


def test_enough_permutations_for_the_strictest_rate():
    for rate, tests in ((0.05, 1), (0.01, 8), (0.001, 10)):
        assert 10 * tests / (1 + drift.permutations(rate, tests)) <= rate


def test_large_sets_are_sampled_by_whole_patients():
    owners = np.repeat(np.arange(3000), 2)
    films = Films(values=owners.astype(float), patients=owners)
    values, units, first = drift._drawn(films, films, 0)
    assert first == drift.LIMIT // 2 and len(values) == 2 * drift.LIMIT
    assert (np.bincount(units) == 2).all()
