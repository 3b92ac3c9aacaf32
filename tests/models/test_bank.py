"""Scores that compare features with those of training images, against float64."""

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf

from selftaught.models.bank import COLUMNS, Bank, unit


def rows(count, seed, regime):
    """Features (count, 24)."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((count, 24))
    if regime == "after a relu":
        x = np.maximum(x @ np.random.default_rng(7).standard_normal((24, 24)), 0)
        x[:, 3] = 0  # a unit that is dead
    elif regime == "ties":
        x = np.round(x[:, :1]) + np.zeros(24)
    elif regime == "scales":
        x = 10 + x * np.logspace(-3, 2, 24)
    if count > 4:
        x[1] = x[0]
        x[2] = 0
    return torch.tensor(x, dtype=torch.float32)


def nearest(queries, database, k):
    q, x = queries.double(), database.double()
    distances = (q[:, None] - x[None]).square().sum(-1).sqrt().sort(1).values
    return distances[:, :k].mean(1)


def by_definition(h, normals, abnormal, k, ratio_k):
    lengths = [one.double().norm(dim=1, keepdim=True) for one in (h, normals, abnormal)]
    n, u, a = (
        one.double() / length.where(length > 0, 1)
        for one, length in zip((h, normals, abnormal), lengths, strict=True)
    )
    squared = LedoitWolf().fit(normals.double().numpy()).mahalanobis(h.double().numpy())
    # An image at the mean has no logarithm; it gets that of the least float32.
    squared = np.maximum(squared, float(np.finfo(np.float32).tiny) ** 2)
    ratio = nearest(n, u, ratio_k)
    if len(a):
        ratio -= nearest(n, a, ratio_k)
    return {
        "ratio_score": ratio,
        "normality_score": torch.from_numpy(np.log(squared) / 2),
        "knn_score": nearest(h, normals, k),
    }


@pytest.mark.parametrize("regime", ["broad", "after a relu", "scales", "ties"])
@pytest.mark.parametrize(
    ("normals", "abnormal", "k", "ratio_k"), [(60, 9, 20, 5), (60, 1, 100, 5), (4, 0, 1, 7)]
)
def test_columns_are_as_defined(regime, normals, abnormal, k, ratio_k):
    bank, known = rows(normals, 0, regime), rows(abnormal, 1, regime) + 0.5
    h = torch.cat([rows(30, 2, regime), bank[:2], known[:1]])
    made = Bank.of(bank, known, neighbours=k, ratio_neighbours=ratio_k)(h)
    assert tuple(made) == COLUMNS
    for name, values in by_definition(h, bank, known, k, ratio_k).items():
        assert made[name].dtype == torch.float32
        torch.testing.assert_close(made[name].double(), values, rtol=2e-5, atol=2e-6, msg=name)


def test_a_training_image_is_its_own_neighbour():
    bank, known = rows(8, 0, "broad")[3:], rows(8, 1, "broad")[3:]
    made = Bank.of(bank, known, neighbours=1, ratio_neighbours=1)
    assert not made(bank)["knn_score"].any()
    assert (made(bank)["ratio_score"] < 0).all() and (made(known)["ratio_score"] > 0).all()


def test_scores_do_not_depend_on_who_else_is_asked():
    bank, h = Bank.of(rows(40, 0, "broad"), rows(5, 1, "broad")), rows(9, 2, "broad")
    whole = bank(h)
    for name in COLUMNS:
        apart = torch.cat([bank(one, [name])[name] for one in h.split(2)])
        torch.testing.assert_close(apart, whole[name], rtol=1e-6, atol=1e-7)
    assert {name: len(values) for name, values in bank(h[:0]).items()} == dict.fromkeys(COLUMNS, 0)


def test_the_ratio_does_not_see_lengths():
    normals, known, h = rows(40, 0, "broad"), rows(5, 1, "broad"), rows(9, 2, "broad")
    plain = Bank.of(normals, known)(h)["ratio_score"]
    scaled = Bank.of(normals * 7, known / 3)(h * 100)["ratio_score"]
    torch.testing.assert_close(scaled, plain, rtol=1e-5, atol=1e-6)
    assert not unit(torch.zeros(2, 4)).any()


@pytest.mark.parametrize("count", [1, 5])
def test_normals_that_do_not_differ_have_euclids_distance(count):
    same, h = rows(4, 0, "broad")[:1].expand(count, -1), rows(3, 1, "broad")
    made = Bank.of(same.contiguous(), h[:0])(torch.cat([h, same[:1]]))
    wanted = (h.double() - same[0].double()).norm(dim=1).log()
    torch.testing.assert_close(made["normality_score"][:3].double(), wanted, rtol=1e-5, atol=1e-6)
    assert all(values.isfinite().all() for values in made.values())


def test_features_that_are_no_numbers_are_refused():
    bank, h = Bank.of(rows(6, 0, "broad"), rows(0, 1, "broad")), rows(3, 2, "broad")
    h[1, 1] = torch.nan
    with pytest.raises(ValueError, match="queries: row 1 holds a value that is not finite"):
        bank(h)
