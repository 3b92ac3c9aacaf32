"""The plan is a pure function of (seed, stage, epoch, sample, view), with the right statistics."""

import numpy as np
import pytest

from selftaught.data.plan import (
    PARAMETERS,
    PLAIN,
    Augment,
    batch_at,
    draw,
    finetune_augment,
    pretext_augment,
    share_at,
    steps_per_epoch,
)

N = 12_000
GOLDEN_PLAN = [[1.0, 0.0, 1.0, 0.9214728, -40.14782], [0.0, 0.0, 1.0, 0.9915569, 3.552173]]
GOLDEN_ORDER = [10, 9, 1, 2, 3, 16]


def columns(augment: Augment, *, n: int = N, **options: object) -> dict[str, np.ndarray]:
    settings = {"seed": 1, "stage": "pretext", "epoch": 0, "views": 1} | options
    plan = draw(augment, samples=np.arange(n), **settings)  # type: ignore[arg-type]
    return dict(zip(PARAMETERS, plan[:, 0].astype(float).T, strict=True))


@pytest.fixture(scope="module")
def pretext() -> dict[str, np.ndarray]:
    return columns(pretext_augment("default"))


@pytest.fixture(scope="module")
def published() -> dict[str, np.ndarray]:
    return columns(pretext_augment("paper"))


def uniform(values: np.ndarray, low: float, high: float) -> None:
    """Range, mean and spread of a uniform distribution, within 4 standard errors."""
    width = high - low
    assert values.min() >= low - 1e-6 and values.max() <= high + 1e-6
    assert values.max() - values.min() > 0.99 * width
    assert abs(values.mean() - (low + high) / 2) < 4 * width / np.sqrt(12 * values.size)
    assert abs(values.std() - width / np.sqrt(12)) < 0.02 * width


def share(values: np.ndarray, probability: float) -> None:
    error = np.sqrt(probability * (1 - probability) / values.size)
    assert abs(values.mean() - probability) < 4 * error


def test_shape_type_and_neutral_plan() -> None:
    plan = draw(PLAIN, seed=3, stage="plain", epoch=7, samples=[4, 9, 1], views=2)
    assert plan.shape == (3, 2, len(PARAMETERS)) and plan.dtype == np.float32
    neutral = {"brightness", "scale", "crop_width", "crop_height", "color_brightness"}
    expected = [float(name in neutral | {"color_contrast"}) for name in PARAMETERS]
    np.testing.assert_array_equal(plan, np.broadcast_to(np.float32(expected), plan.shape))
    assert draw(PLAIN, seed=3, stage="x", epoch=0, samples=[], views=2).shape[0] == 0


def test_pretext_follows_the_table(pretext: dict[str, np.ndarray]) -> None:
    share(pretext["horizontal_flip"], 0.5)
    assert not pretext["vertical_flip"].any() and (pretext["brightness"] == 1).all()
    uniform(pretext["scale"], 0.8, 1.2)
    uniform(pretext["angle"], -45, 45)
    assert (pretext["angle"] != np.floor(pretext["angle"])).mean() > 0.99
    colored = pretext["color_brightness"] != 1
    share(colored, 0.8)
    assert (colored == (pretext["color_contrast"] != 1)).all()
    uniform(pretext["color_brightness"][colored], 0.6, 1.4)
    uniform(pretext["color_contrast"][colored], 0.6, 1.4)
    blurred = pretext["blur_sigma"] > 0
    share(blurred, 0.5)
    uniform(pretext["blur_sigma"][blurred], 0.1, 2.0)


def test_finetune_follows_the_table() -> None:
    plan = columns(finetune_augment("default"))
    share(plan["horizontal_flip"], 0.5)
    share(plan["vertical_flip"], 0.5)
    uniform(plan["brightness"], 0.8, 1.2)
    uniform(plan["scale"], 0.8, 1.2)
    uniform(plan["angle"], -20, 20)
    for name, value in (("crop_width", 1), ("crop_height", 1), ("crop_left", 0), ("crop_top", 0)):
        assert (plan[name] == value).all()
    assert (plan["color_contrast"] == 1).all() and not plan["blur_sigma"].any()


def test_intended_crops(pretext: dict[str, np.ndarray]) -> None:
    """0.652: mean area of accepted crops by an independent simulation of 200,000 draws."""
    area = pretext["crop_width"] * pretext["crop_height"]
    ratio = pretext["crop_width"] / pretext["crop_height"]
    assert abs(area.mean() - 0.652) < 0.006
    assert area.min() >= 0.4 - 1e-6 and 0.8 - 1e-6 <= ratio.min() and ratio.max() <= 1.25 + 1e-6
    for start, size in (("crop_left", "crop_width"), ("crop_top", "crop_height")):
        assert pretext[start].min() >= 0
        assert (pretext[start] + pretext[size]).max() <= 1 + 1e-6
        middle = pretext[start] + pretext[size] / 2
        assert abs(middle.mean() - 0.5) < 0.005


def test_published_crops(published: dict[str, np.ndarray]) -> None:
    """0.511, 5-95 % 0.19-0.85, centres in the upper left half: figures of the published code."""
    area = published["crop_width"] * published["crop_height"]
    assert abs(area.mean() - 0.511) < 0.008
    assert np.abs(np.percentile(area, [5, 95]) - [0.19, 0.85]).max() < 0.015
    ratio = np.percentile(published["crop_width"] / published["crop_height"], [5, 95])
    assert np.abs(ratio - [0.63, 1.59]).max() < 0.03
    middle_x = published["crop_left"] + published["crop_width"] / 2
    middle_y = published["crop_top"] + published["crop_height"] / 2
    assert (middle_x + middle_y <= 1 + 1e-6).all()


def test_published_box_is_the_swapped_intended_one(
    pretext: dict[str, np.ndarray], published: dict[str, np.ndarray]
) -> None:
    """Read as (left, top, right, bottom), the published box is (row, column, height, width)."""
    right = published["crop_left"] + published["crop_width"]
    bottom = published["crop_top"] + published["crop_height"]
    np.testing.assert_allclose(published["crop_left"], pretext["crop_top"], atol=1e-6)
    np.testing.assert_allclose(published["crop_top"], pretext["crop_left"], atol=1e-6)
    np.testing.assert_allclose(right, pretext["crop_height"], atol=1e-6)
    np.testing.assert_allclose(bottom, pretext["crop_width"], atol=1e-6)


def test_published_angles_and_scales(published: dict[str, np.ndarray]) -> None:
    assert (published["angle"] == np.floor(published["angle"])).all()
    assert set(published["angle"].astype(int)) == set(range(-45, 45))
    uniform(1 / published["scale"], 0.8, 1.2)


def test_a_crop_that_never_fits_is_the_whole_canvas() -> None:
    augment = Augment(crop_area=(0.9, 1.0), crop_ratio=(4.0, 5.0))
    plan = columns(augment, n=50)
    assert (plan["crop_width"] == 1).all() and (plan["crop_height"] == 1).all()
    assert not plan["crop_left"].any() and not plan["crop_top"].any()


def test_a_row_depends_on_its_own_coordinates_only() -> None:
    augment = pretext_augment("default")

    def rows(samples: list[int], views: int = 2, **options: object) -> np.ndarray:
        settings = {"seed": 5, "stage": "pretext", "epoch": 3} | options
        return draw(augment, samples=samples, views=views, **settings)  # type: ignore[arg-type]

    base = rows([7, 2, 11, 30])
    np.testing.assert_array_equal(rows([30, 7]), base[[3, 0]])
    np.testing.assert_array_equal(rows([7, 2, 11, 30], views=4)[:, :2], base)
    np.testing.assert_array_equal(rows([2, 2]), base[[1, 1]])
    others = [
        rows([7], epoch=4),
        rows([7], seed=6),
        rows([7], seed=-5),
        rows([7], stage="finetune"),
        rows([8]),
        base[:1, ::-1],
    ]
    for other in others:
        assert (other != base[:1]).mean() > 0.5
    far = rows([2**40], epoch=2**33)
    assert np.isfinite(far).all()


def test_rows_are_uncorrelated_over_neighbours() -> None:
    augment = Augment(rotation=(-1, 1))
    plan = draw(augment, seed=1, stage="p", epoch=0, samples=np.arange(4000), views=2)
    angle = plan[..., PARAMETERS.index("angle")]
    later = draw(augment, seed=1, stage="p", epoch=1, samples=np.arange(4000), views=2)
    pairs = [
        (angle[:, 0], angle[:, 1]),
        (angle[:-1, 0], angle[1:, 0]),
        (angle[:, 0], later[:, 0, PARAMETERS.index("angle")]),
    ]
    for one, other in pairs:
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.06


def test_switching_one_thing_off_leaves_the_rest() -> None:
    import dataclasses

    full = pretext_augment("default")
    less = columns(dataclasses.replace(full, blur=0.0, horizontal_flip=0.0), n=100)
    for name, values in columns(full, n=100).items():
        if name not in ("blur_sigma", "horizontal_flip"):
            np.testing.assert_array_equal(less[name], values)


def test_golden_numbers() -> None:
    """The stream is a promise: a run must resume with another version of numpy."""
    plan = draw(pretext_augment("default"), seed=1, stage="pretext", epoch=2, samples=[3], views=2)
    np.testing.assert_allclose(plan[0, :, :5], GOLDEN_PLAN, rtol=1e-6)
    epoch, ids = batch_at(1, "pretext", 5, 20, 6)
    assert (epoch, ids.tolist()) == (1, GOLDEN_ORDER)


@pytest.mark.parametrize("drop_last", [True, False])
def test_epochs_are_permutations(drop_last: bool) -> None:
    n, size = 50, 8
    steps = steps_per_epoch(n, size, drop_last)
    assert steps == (6 if drop_last else 7)
    seen = []
    for epoch in range(3):
        parts = []
        for step in range(epoch * steps, (epoch + 1) * steps):
            at, ids = batch_at(9, "finetune", step, n, size, drop_last)
            assert at == epoch and ids.dtype == np.int64
            parts.append(ids)
        order = np.concatenate(parts)
        assert np.unique(order).size == order.size == (48 if drop_last else 50)
        seen.append(order)
    assert not np.array_equal(seen[0], seen[1]) and not np.array_equal(seen[1], seen[2])


def test_order_does_not_depend_on_the_batch_layout() -> None:
    whole = batch_at(1, "pretext", 0, 48, 48)[1]
    for size in (1, 8, 16):
        parts = [batch_at(1, "pretext", step, 48, size)[1] for step in range(48 // size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(batch_at(2, "pretext", 0, 48, 48)[1], whole)
    assert not np.array_equal(batch_at(1, "finetune", 0, 48, 48)[1], whole)


def test_the_caller_may_change_a_batch() -> None:
    first = batch_at(1, "pretext", 0, 12, 4)[1]
    kept = first.copy()
    first[:] = -1
    np.testing.assert_array_equal(batch_at(1, "pretext", 0, 12, 4)[1], kept)


def test_every_position_is_equally_likely() -> None:
    firsts = [batch_at(1, "p", step, 10, 10)[1][0] for step in range(2000)]
    counts = np.bincount(firsts, minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 27.9  # chi-square, 9 degrees, 0.1 %


def test_refusals() -> None:
    with pytest.raises(ValueError, match="batch_size 24 exceeds the 10 samples; allowed 1 to 10"):
        steps_per_epoch(10, 24, True)
    assert steps_per_epoch(10, 24, False) == 1
    for n, size in ((0, 4), (4, 0), (-1, 2)):
        with pytest.raises(ValueError, match="at least 1"):
            steps_per_epoch(n, size, False)
    with pytest.raises(ValueError, match="step -1"):
        batch_at(1, "p", -1, 10, 2)
    for bad in ({"epoch": -1}, {"samples": [-1]}, {"views": 0}):
        settings = {"epoch": 0, "samples": [0], "views": 1} | bad
        with pytest.raises(ValueError, match="start at 0"):
            draw(PLAIN, seed=1, stage="p", **settings)  # type: ignore[arg-type]


def test_a_fixed_share_of_each_batch_is_known() -> None:
    known = np.arange(22) % 6 == 1  # 4 known, 18 others: three batches of 6 others are a round
    batches = [share_at(3, "finetune", step, known, 8, 0.25) for step in range(57)]
    assert all(known[batch].sum() == 2 for batch in batches)
    others = [tuple(batch[~known[batch]]) for batch in batches]
    rounds = [others[first] + others[first + 1] + others[first + 2] for first in range(0, 57, 3)]
    assert all(sorted(one) == np.flatnonzero(~known).tolist() for one in rounds)
    assert len(set(rounds)) == len(rounds)
    drawn = np.concatenate([batch[known[batch]] for batch in batches])
    assert set(drawn.tolist()) == set(np.flatnonzero(known).tolist())
    # A rank's part, half of the batch, has known ones now and then.
    assert {int(known[batch[:4]].sum()) for batch in batches} == {0, 1, 2}
    assert not np.array_equal(batches[0], share_at(4, "finetune", 0, known, 8, 0.25))
    np.testing.assert_array_equal(batches[5], share_at(3, "finetune", 5, known, 8, 0.25))


@pytest.mark.parametrize("known", [np.zeros(5, bool), np.ones(5, bool)])
def test_a_share_of_what_is_not_there_is_refused(known: np.ndarray) -> None:
    with pytest.raises(ValueError, match="some of each kind"):
        share_at(1, "finetune", 0, known, 4, 0.5)
