"""A table of folds: replicates are means over folds, rows are compared on validation."""

import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from selftaught import methods
from selftaught.errors import InputError
from selftaught.evaluation import auroc
from selftaught.table1.collect import collect
from selftaught.table1.own_rows import keep
from selftaught.table1.results import read_results
from selftaught.table1.rows import build_rows, row_line
from tests.table1.conftest import make_split

PAIRS = ((1, 42), (11, 43), (111, 44), (1111, 42))
FOLDS = 3


def fold_split(seed, fold):
    """No test image; other validation images in each fold."""
    split = make_split(60, seed)
    sets = np.where(np.arange(60) // 2 % FOLDS == fold, "val", "train")
    return split.assign(split=sets)


def scores_of(row, seed, draw, fold, quality):
    generator = np.random.default_rng([seed, draw, fold, *map(ord, row)])
    split = fold_split(draw, fold)
    return split.assign(score=np.round(generator.normal(size=60) + quality * split["label"], 3))


def fill(table, qualities, pairs=PAIRS, folds=range(FOLDS)):
    for row, quality in qualities.items():
        for seed, draw in pairs:
            for fold in folds:
                table.add(
                    row, seed, split_seed=draw, folds=FOLDS, fold=fold,
                    run=f"cells/{row}/s{seed}-f{fold}",
                    scores=scores_of(row, seed, draw, fold, quality),
                )  # fmt: skip


def values(row, quality):
    """Means over folds by pair, computed from the scores alone."""
    means = []
    for seed, draw in PAIRS:
        frames = [scores_of(row, seed, draw, fold, quality) for fold in range(FOLDS)]
        parts = [frame[frame["split"] == "val"] for frame in frames]
        means.append(np.mean([100 * auroc(part["label"], part["score"]) for part in parts]))
    return np.array(means)


def lines_of(out, against=""):
    rows = build_rows(read_results(out), methods.systems(), against)
    return {row.name: row_line(row) for row in rows}


def test_rows_are_compared_on_the_mean_over_folds_as_scipy_does(table):
    fill(table, {"ours": 1.0, "ruff": 0.4})
    line = lines_of(table.write())["ruff"]
    ours, ruff = values("ours", 1.0), values("ruff", 0.4)
    assert (line["folds"], line["n"], line["planned"], line["pairs"]) == (3, 4, 4, 4)
    assert line["val_mean"] == pytest.approx(ruff.mean())
    assert line["val_sample_sd"] == pytest.approx(ruff.std(ddof=1))
    test = stats.ttest_rel(ours, ruff)
    assert line["paired_t"] == pytest.approx(test.statistic)
    assert line["paired_p"] == pytest.approx(test.pvalue)
    assert line["against"] == "ours"
    gain = stats.ttest_rel(ruff, ours)
    interval = gain.confidence_interval(0.95)
    assert line["paired_gain"] == pytest.approx((ruff - ours).mean())
    assert line["paired_gain_low"] == pytest.approx(interval.low)
    assert line["paired_gain_high"] == pytest.approx(interval.high)
    least = stats.ttest_rel(ruff, ours, alternative="greater").confidence_interval(0.95).low
    assert line["paired_gain_least"] == pytest.approx(least)
    empty = ("test_mean", "test_t_low", "welch_p", "bootstrap_difference", "published_test")
    assert all(line[name] is None for name in empty)


def test_replicates_are_paired_by_seed_and_draw(table):
    """Crossed, a seed has several draws: pairs are not of the seed alone."""
    pairs = [(seed, draw) for seed in (1, 11) for draw in (42, 43)]
    for row in ("ours", "ruff"):
        for seed, draw in pairs if row == "ours" else reversed(pairs):
            for fold in range(FOLDS):
                table.add(
                    row, seed, split_seed=draw, folds=FOLDS, fold=fold,
                    run=f"cells/{row}/s{seed}-d{draw}-f{fold}",
                    scores=scores_of("same", seed, draw, fold, quality=1.0),
                )  # fmt: skip
    line = lines_of(table.write())["ruff"]
    assert line["pairs"] == 4 and line["paired_gain"] == 0 and line["paired_p"] is None


def test_a_replicate_without_all_its_folds_does_not_count(table, undrawn):
    fill(table, {"ours": 1.0, "ruff": 0.4})
    (table.out / "cells/ruff/s11-f2/scores.csv").unlink()
    out = table.write()
    line = lines_of(out)["ruff"]
    assert (line["n"], line["planned"], line["pairs"]) == (3, 4, 3)
    assert line["val_mean"] == pytest.approx(np.delete(values("ruff", 0.4), 1).mean())
    assert "11 of 12 runs have figures" in line["warning"]
    page = collect(out).read_text(encoding="utf-8")
    assert "seed 11, fold 2" in page and ">3 of 4<" in page


def test_the_page_says_that_the_test_set_is_closed(table):
    fill(table, {"ours": 0.4, "ruff": 1.5})
    out = table.write()
    text = collect(out).read_text(encoding="utf-8")
    assert "The test set is closed: 3 folds" in text and "mean test AUROC" not in text
    assert "Ruff has a higher mean validation AUROC than Ours" in text
    assert "This row minus Ours, validation" in text
    assert "Validation AUROC by body part" in text and not list(out.glob("fig*"))
    assert re.search("Figures 7 to 9 .* none of folds", text)
    cells = pd.read_csv(out / "cells.csv")
    assert sorted(cells["fold"].unique()) == [0, 1, 2] and cells["test_auroc"].isna().all()
    assert cells["val_auroc_HAND"].notna().any()


def test_a_row_is_compared_with_the_one_that_it_is_made_from_unless_all_have_one_base(table):
    fill(table, {"ours": 1.0, "a1": 0.4, "a2": 0.8})
    out = table.write()
    ours = methods.systems()["ours"]._replace(extra=True)
    own = {"a1": ours._replace(against="ours"), "a2": ours._replace(against="a1")}
    keep(out, own)
    collect(out)
    table1 = pd.read_csv(out / "table1.csv").set_index("row")
    assert table1["against"].fillna("").to_dict() == {"ours": "", "a1": "ours", "a2": "a1"}
    gain = values("a2", 0.8).mean() - values("a1", 0.4).mean()
    assert table1.loc["a2", "paired_gain"] == pytest.approx(gain)
    collect(out, "a1")
    table1 = pd.read_csv(out / "table1.csv").set_index("row")
    assert table1["against"].fillna("").to_dict() == {"ours": "a1", "a1": "", "a2": "a1"}
    with pytest.raises(InputError, match="against is 'a3'; allowed: a row of the plan: ours, a1"):
        collect(out, "a3")


def test_a_column_holds_the_same_images_in_each_fold(table):
    fill(table, {"ours": 1.0})
    table.add(
        "ruff", 1, split_seed=42, folds=FOLDS, fold=1, run="cells/ruff/x",
        scores=scores_of("ruff", 1, 42, 2, 1.0),
    )  # fmt: skip
    with pytest.raises(InputError, match="cells/ruff/x: the SHA-256 of split.csv"):
        read_results(table.write())
