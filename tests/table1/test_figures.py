"""The figures' own numbers, as their CSV files hold them."""

import numpy as np
import pandas as pd
import pytest

from selftaught import methods
from selftaught.evaluation import holm, stars, welch_test
from selftaught.table1 import figures
from selftaught.table1.collect import collect
from selftaught.table1.figures import write_figures
from selftaught.table1.results import read_results
from selftaught.table1.rows import build_rows
from tests.table1.conftest import make_log

SEEDS = (1, 2, 3)


def draw(out):
    rows = build_rows(read_results(out), methods.systems())
    pictures, problems = write_figures(out, rows)
    return {row.name: row for row in rows}, pictures, problems


def test_bars_and_links(table):
    for seed in SEEDS:
        for row, quality in (("ours", 2.0), ("uni-modal", 1.5), ("ruff", 0.2)):
            table.add(row, seed, quality)
    rows, _, problems = draw(table.write())
    assert not problems
    drawn = pd.read_csv(table.out / "fig7.csv").set_index("kind")
    bars, links = drawn.loc["bar"], drawn.loc["link"].reset_index()
    values = {name: [c.figures["test_auroc"] for c in row.done] for name, row in rows.items()}
    assert bars["mean"].tolist() == pytest.approx([np.mean(v) for v in values.values()])
    assert bars["plus_minus"].tolist() == pytest.approx([1.96 * np.std(v) for v in values.values()])
    pairs = [("ours", "uni-modal"), ("ours", "ruff"), ("uni-modal", "ruff")]
    assert list(zip(links["system"], links["other"], strict=True)) == pairs
    p = [welch_test(values[a], values[b]).p for a, b in pairs]
    assert links["p"].tolist() == pytest.approx(p)
    assert links["p_holm"].tolist() == pytest.approx(holm(p))
    assert links["mark"].tolist() == [stars(one) for one in holm(p)]
    raw = pd.read_csv(table.out / "fig7_raw.csv").set_index("kind").loc["link"]
    assert raw["mark"].tolist() == [stars(one) for one in p]


def test_curves_end_where_the_shortest_does(table):
    for seed, epochs in zip(SEEDS, (4, 6, 5), strict=True):
        table.add("ours", seed, log=make_log(seed, epochs))
    table.add("ruff", 1, log=make_log(2, 3))
    draw(table.write())
    curves = pd.read_csv(table.out / "fig8.csv").set_index("system")
    ours = curves.loc["ours"]
    assert ours["epoch"].tolist() == [1, 2, 3, 4]
    # Seeds 1, 2, 3 begin at 51, 52 and 53 %: population SD 0.8165.
    assert ours["mean"].tolist() == pytest.approx([52, 62, 72, 82])
    assert ours["plus_minus"].tolist() == pytest.approx([1.96 * (2 / 3) ** 0.5] * 4)
    assert curves.loc["ruff", "plus_minus"].isna().all()


def test_maps_are_of_the_median_run_and_of_validation_images(table, monkeypatch):
    monkeypatch.setattr(figures, "MOST_POINTS", 9)
    for seed, quality in zip(SEEDS, (0.0, 4.0, 1.0), strict=True):
        table.add("ours", seed, quality, embeddings=True)
    table.add("ruff", 1)
    rows, pictures, _ = draw(table.write())
    points = pd.read_csv(table.out / "fig9.csv", dtype={"path": str})
    ours = points[points["system"] == "ours"]
    aurocs = {cell.seed: cell.figures["test_auroc"] for cell in rows["ours"].done}
    assert set(ours["seed"]) == {sorted(aurocs, key=aurocs.get)[1]} == {3}
    split = table.split.set_index("path")
    assert set(split.loc[ours["path"], "split"]) == {"val"}
    # 5 of 12 validation images are abnormal: 9 points keep the shares.
    shares = split[split["split"] == "val"]["label"].value_counts()
    assert (ours["label"].value_counts() == 9 * shares // 12).all()
    assert ours[["h_x", "h_y", "z_x", "z_y"]].notna().all(axis=None)
    assert not np.allclose(ours["h_x"], ours["z_x"])
    # Ruff's run holds no embeddings: its histogram is there, its maps are not.
    ruff = points[points["system"] == "ruff"]
    assert len(ruff) and ruff["score"].notna().all() and ruff["h_x"].isna().all()
    assert any(
        "seed" not in picture.caption and "Fig. 9" in picture.caption for picture in pictures
    )


def test_a_figure_that_no_run_supports_any_more_is_gone(table):
    table.add("ours", 1)
    table.add("ruff", 1)
    draw(table.write())
    assert {path.suffix for path in table.out.glob("fig7.*")} == {".csv", ".png", ".svg"}
    for line in table.lines:
        line["run"] = "cells/gone"
    text = collect(table.write()).read_text(encoding="utf-8")
    assert not list(table.out.glob("fig*")) and "fig7 needs two of" in text
