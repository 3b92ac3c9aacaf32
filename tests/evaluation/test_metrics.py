import json
import time

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from selftaught.errors import InputError
from selftaught.evaluation import evaluate


def table(n=60, *, seed=0, split="test", **columns):
    generator = np.random.default_rng(seed)
    label = generator.integers(2, size=n)
    score = np.round(generator.normal(size=n) + label, 1)  # one decimal: many ties
    frame = pd.DataFrame(
        {
            "path": [f"images/{split}_{i}.png" for i in range(n)],
            "split": split,
            "label": label,
            "semi_label": 0,
            "score": score,
            "group": [f"p{i // 3}" for i in range(n)],
        }
    )
    return frame.assign(**columns)


def pairs_auroc(labels, scores):
    """Share of (abnormal, normal) pairs in the right order, a tie counting half."""
    wins = [(a > b) + 0.5 * (a == b) for a in scores[labels == 1] for b in scores[labels == 0]]
    return np.mean(wins)


def test_figures_against_sklearn_and_pair_counting():
    frame = pd.concat([table(seed=1, split="val"), table(n=80, seed=2)])
    result = evaluate(frame, seed=3, resamples=50)
    for split, n in (("val", 60), ("test", 80)):
        rows = frame[frame["split"] == split]
        y, s = rows["label"].to_numpy(), rows["score"].to_numpy()
        block = result[split]
        assert (block["n"], block["abnormal"], block["unlabelled"]) == (n, y.sum(), 0)
        assert block["auroc"] == pytest.approx(pairs_auroc(y, s), abs=1e-12)
        assert block["aupr_abnormal"] == average_precision_score(y, s)
        assert block["aupr_normal"] == average_precision_score(1 - y, -s)
        low, high = block["auroc_ci"]
        assert 0 < low < block["auroc"] < high < 1
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("level", [0.80, 0.90, 0.95])
def test_operating_points_by_trying_every_threshold(level):
    frame = table(n=200, seed=4)
    y, s = frame["label"].to_numpy(), frame["score"].to_numpy()
    points = []
    for cut in [*np.unique(s), np.inf]:
        called = s >= cut
        points.append((called[y == 1].mean(), (~called[y == 0]).mean()))
    block = evaluate(frame, seed=0, resamples=2)["test"]
    key = f"{level:.2f}"
    best_sensitivity = max(sens for sens, spec in points if spec >= level)
    best_specificity = max(spec for sens, spec in points if sens >= level)
    assert block["sensitivity_at_specificity"][key] == pytest.approx(best_sensitivity)
    assert block["specificity_at_sensitivity"][key] == pytest.approx(best_specificity)


def test_operating_point_exactly_at_the_level_is_kept():
    # 10 normal images of which one is above the cut: specificity exactly 0.9 (1 - 0.9 < 0.1).
    frame = table(n=20).assign(
        label=[0] * 10 + [1] * 10, score=[0.0] * 9 + [5.0] + [3.0] * 9 + [0.0]
    )
    block = evaluate(frame, seed=0, resamples=2)["test"]
    assert block["sensitivity_at_specificity"]["0.90"] == pytest.approx(0.9)
    assert block["sensitivity_at_specificity"]["0.95"] == 0.0
    assert block["specificity_at_sensitivity"]["0.90"] == pytest.approx(0.9)


@pytest.mark.parametrize("form", ["bool", "int", "text"])
def test_balanced_accuracy_at_the_stored_threshold(form):
    flags = np.array([0, 0, 0, 1, 1, 1, 1, 0], dtype=bool)
    flagged = {"bool": flags, "int": flags.astype(int), "text": flags.astype(str)}[form]
    frame = table(n=8).assign(label=[0, 0, 0, 0, 1, 1, 1, 1], flagged=flagged)
    block = evaluate(frame, seed=0, resamples=2)["test"]
    assert block["threshold_sensitivity"] == 0.75
    assert block["threshold_specificity"] == 0.75
    assert block["balanced_accuracy"] == 0.75


def test_no_stored_threshold_is_said():
    block = evaluate(table(flagged=np.nan), seed=0, resamples=2)["test"]
    assert block["balanced_accuracy"] is None
    assert block["reasons"]["balanced_accuracy"] == "no stored threshold"


def test_body_parts_studies_and_ablations():
    frame = table(n=90, seed=5)
    frame["body_part"] = np.array(["WRIST", "HAND", ""])[np.arange(90) % 3]
    frame["study"] = [f"study{i % 3}" for i in range(90)]  # repeats from patient to patient
    frame["knn_score"] = -frame["score"]
    frame["pretext_knn_score"] = np.nan
    block = evaluate(frame, seed=0, resamples=20)["test"]
    assert set(block["body_parts"]) == {"WRIST", "HAND"}
    wrist = frame[frame["body_part"] == "WRIST"]
    assert block["body_parts"]["WRIST"]["n"] == 30
    expected = roc_auc_score(wrist["label"], wrist["score"])
    assert block["body_parts"]["WRIST"]["auroc"] == expected
    assert block["studies"]["n"] == 90
    assert block["knn_score"]["auroc"] == pytest.approx(1 - block["auroc"])
    assert "pretext_knn_score" not in block


def test_study_is_abnormal_when_one_image_is():
    frame = table(n=8).assign(
        label=[0, 1, 0, 0, 1, 1, 0, 0],
        score=[0.0, 4.0, 3.0, 3.0, 1.0, 2.0, 0.0, 0.0],
        group=list("aabbccdd"),
        study="s",
    )
    studies = evaluate(frame, seed=0, resamples=2)["test"]["studies"]
    # Largest: a 4, b 3, c 2, d 0; mean: a 2, b 3, c 1.5, d 0; abnormal: a and c.
    assert (studies["n"], studies["abnormal"]) == (4, 2)
    assert studies["auroc_max"] == 0.75
    assert studies["auroc_mean"] == 0.5


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_gives_null_and_a_reason(label):
    result = evaluate(table(label=label, body_part="HAND", study="s"), seed=0, resamples=2)
    block = result["test"]
    assert block["auroc"] is None and block["auroc_ci"] is None
    assert ("no abnormal" if label == 0 else "no normal") in block["reasons"]["auroc"]
    assert block["body_parts"]["HAND"]["auroc"] is None
    assert block["studies"]["auroc_max"] is None
    for name, value in block.items():
        assert value is not None or name in block["reasons"]
    assert result["val"]["n"] == 0 and result["val"]["reasons"]["auroc"] == "no labelled image"
    json.dumps(result, allow_nan=False)


def test_empty_table():
    result = evaluate(table().iloc[:0], seed=0, resamples=2)
    assert result["val"]["auroc"] is None and result["test"]["auroc"] is None


def test_blank_labels_are_left_out():
    frame = table(n=60, seed=6)
    label = frame["label"].astype("Int8")
    label[::4] = pd.NA
    block = evaluate(frame.assign(label=label), seed=0, resamples=20)["test"]
    kept = np.arange(60) % 4 != 0
    assert block["unlabelled"] == 15 and block["n"] == 45
    assert block["auroc"] == roc_auc_score(frame["label"][kept], frame["score"][kept])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", ["score", "knn_score"])
def test_bad_score_names_the_image(bad, column):
    frame = table(knn_score=1.0)
    frame.loc[7, column] = bad
    with pytest.raises(InputError, match=rf"images/test_7\.png: {column} is") as caught:
        evaluate(frame, seed=0)
    assert "\n" not in str(caught.value)


def test_bad_label_and_missing_column():
    frame = table().astype({"label": object})
    frame.loc[3, "label"] = "2"
    with pytest.raises(InputError, match=r"test_3\.png: label is '2'"):
        evaluate(frame, seed=0)
    with pytest.raises(InputError, match="column score is missing"):
        evaluate(table().drop(columns="score"), seed=0)


def test_seed_decides_the_interval_and_other_rows_do_not():
    frame = pd.concat([table(seed=1, split="val"), table(seed=2)])
    first = evaluate(frame, seed=1, resamples=100)
    assert evaluate(frame, seed=1, resamples=100) == first
    assert evaluate(frame, seed=2, resamples=100)["test"]["auroc_ci"] != first["test"]["auroc_ci"]
    alone = evaluate(frame[frame["split"] == "test"], seed=1, resamples=100)
    assert alone["test"] == first["test"]


def test_one_group_has_no_interval_and_says_so():
    block = evaluate(table(group="p0"), seed=0, resamples=10)["test"]
    assert block["auroc"] is not None and block["auroc_ci"] is None
    assert "two groups" in block["reasons"]["auroc_ci"]


@pytest.mark.parametrize("group", ["", None, np.nan])
def test_blank_group_means_every_image_alone(group):
    alone = table(group=[f"g{i:02d}" for i in range(60)])
    blank = evaluate(table(group=group), seed=0, resamples=10)["test"]
    assert blank["groups"] == 60
    assert blank["auroc_ci"] == pytest.approx(
        evaluate(alone, seed=0, resamples=500)["test"]["auroc_ci"], abs=0.15
    )


def test_ten_thousand_images_take_seconds():
    frame = table(n=10_500, seed=8)
    start = time.perf_counter()
    evaluate(frame, seed=0)
    assert time.perf_counter() - start < 10
