"""What `collect` makes of a folder of runs."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from selftaught import methods
from selftaught.errors import InputError
from selftaught.evaluation import auroc, holm, welch_from_summary, welch_test
from selftaught.table1.collect import collect
from selftaught.table1.figures import BARS, CURVES
from selftaught.table1.page import _headlines
from selftaught.table1.results import read_results
from selftaught.table1.rows import build_rows, published_rows, row_line
from tests.table1.conftest import make_log, make_split, write_run
from tests.table1.tables import make

SEEDS = (1, 11, 111)


def lines_of(out):
    """table1.csv by row, of a table that `collect` need not draw."""
    return {row.name: row_line(row) for row in build_rows(read_results(out), methods.systems())}


def test_the_printed_table_reproduces_the_tests_of_the_published_figures():
    """Section 0.4 of the specification, from the figures as printed."""
    rows = published_rows()
    table = {row: one for (row, share), one in rows.items() if share == 0.05 and one.welch}
    assert len(table) == 11
    uni = table["uni-modal"].welch
    assert (uni.t, uni.degrees_of_freedom) == (
        pytest.approx(2.43, abs=0.005),
        pytest.approx(5.3, abs=0.05),
    )
    p = {row: one.welch.p for row, one in table.items()}
    assert round(p.pop("uni-modal"), 3) == 0.056
    assert round(p.pop("supcon"), 2) == 0.12
    assert round(p.pop("drocc-lf"), 3) == 0.083
    assert max(p.values()) < 0.01
    adjusted = {row: one.welch_p_holm for row, one in table.items()}
    assert [round(adjusted.pop(r), 2) for r in ("uni-modal", "supcon", "drocc-lf")] == [0.17] * 3
    third = [adjusted.pop(row) for row in ("resnet50", "multi-modal-ae")]
    assert [round(value, 3) for value in third] == [0.039] * 2
    assert max(adjusted.values()) < 0.004
    assert rows["ours", 0.10].test == 79.78 and rows["ae-100nn", 0.05].welch is None


def test_figures_come_from_the_scores_and_nothing_else(table):
    for seed in SEEDS:
        table.add("ours", seed)
        run = table.add("ruff", seed, 0.3)
        (run / "metrics.json").write_text('{"test": {"auroc": 0.99}}')
    out = table.write()
    line = lines_of(out)
    values = {}
    for row in ("ours", "ruff"):
        scores = [pd.read_csv(out / f"cells/{row}/s{seed:04d}/scores.csv") for seed in SEEDS]
        tests = [one[one["split"] == "test"] for one in scores]
        values[row] = np.array([100 * auroc(one["label"], one["score"]) for one in tests])
        assert line[row]["test_mean"] == pytest.approx(values[row].mean())
        assert line[row]["test_population_sd"] == pytest.approx(values[row].std())
        assert line[row]["test_plus_minus"] == pytest.approx(1.96 * values[row].std())
        assert line[row]["test_sample_sd"] == pytest.approx(values[row].std(ddof=1))
        low, high = line[row]["test_t_low"], line[row]["test_t_high"]
        # t(0.975, 2) = 4.302653
        assert high - low == pytest.approx(2 * 4.302653 * values[row].std(ddof=1) / 3**0.5)
    assert line["ruff"]["welch_p"] == pytest.approx(welch_test(*values.values()).p)
    assert line["ruff"]["bootstrap_difference"] == pytest.approx(
        (values["ours"] - values["ruff"]).mean()
    )
    published = line["ruff"]["difference_to_published"]
    assert published == pytest.approx(values["ruff"].mean() - 75.15)
    assert line["ruff"]["within_published"] == int(abs(published) <= 0.80)


def test_holm_counts_the_rows_of_one_column(table):
    for seed in SEEDS:
        for row, quality in (("ours", 1.5), ("ruff", 1), ("supcon", 0.7), ("joint", 0.2)):
            table.add(row, seed, quality, extra=int(row == "joint"))
        for row in ("ours", "ruff"):
            run = f"cells/{row}/b100/s{seed}"
            table.add(row, seed, 0.4, known_abnormal=0.1, run=run)
    rows = build_rows(read_results(table.write()), methods.systems())
    assert [(row.name, row.known_abnormal, row.block) for row in rows] == [
        ("ours", 0.05, 0), ("supcon", 0.05, 0), ("ruff", 0.05, 0),
        ("ours", 0.10, 1), ("ruff", 0.10, 1), ("joint", 0.05, 2),
    ]  # fmt: skip
    for kind in ("welch", "paired"):
        family = [row for row in rows if row.known_abnormal == 0.05 and row.name != "ours"]
        raw = [getattr(row, kind).p for row in family]
        assert [getattr(row, f"{kind}_p_holm") for row in family] == holm(raw)
        alone = rows[4]
        assert getattr(alone, f"{kind}_p_holm") == getattr(alone, kind).p
    ours = rows[0]
    assert ours.welch is None and ours.bootstrap is None


def test_no_p_from_one_replicate_and_a_mark_on_two(table):
    table.add("ours", 1)
    table.add("ruff", 1, 0.2)
    line = lines_of(table.write())["ruff"]
    p = [name for name in line if name.endswith(("_p", "_p_holm")) and "published" not in name]
    assert len(p) == 4 and all(line[name] is None for name in p)
    spread = ("population_sd", "plus_minus", "sample_sd", "t_low")
    assert all(line[f"test_{name}"] is None for name in spread)
    # Patients can be resampled with one seed.
    assert line["bootstrap_low"] < line["bootstrap_difference"] < line["bootstrap_high"]
    table.add("ours", 11)
    table.add("ruff", 11, 0.2)
    line = lines_of(table.write())["ruff"]
    assert line["welch_p"] is not None and line["paired_p"] is None and line["pairs"] == 2
    assert "Welch p is from two replicates" in line["warning"]


def test_a_warning_of_several_rows_is_one_line(table):
    for row in ("ours", "ruff", "gan"):
        table.add(row, 1)
        table.add(row, 11, 0.2)
    page = collect(table.write()).read_text(encoding="utf-8")
    assert page.count("its Welch p is from two replicates") == 1
    assert re.search(r"<li>Ruff; Gan: its Welch p", page)


def test_identical_replicates_are_none(table):
    scores = make_split().assign(score=np.arange(48) % 11)
    for seed in SEEDS:
        table.add("ours", seed)
        table.add("ruff", seed, scores=scores)
    line = lines_of(table.write())["ruff"]
    assert line["welch_p"] is None and line["paired_p"] is None
    assert line["warning"].startswith("identical: its 3 replicates agree")


def test_seeds_are_paired_by_number_not_by_place(table):
    """Ruff is Ours with the same scores, planned in another order: no pair differs."""
    for seed in SEEDS:
        table.add("ours", seed)
    for seed in reversed(SEEDS):
        ours = pd.read_csv(table.out / f"cells/ours/s{seed:04d}/scores.csv")
        table.add("ruff", seed, scores=ours)
    line = lines_of(table.write())["ruff"]
    assert line["pairs"] == 3 and line["paired_p"] is None
    assert (line["bootstrap_low"], line["bootstrap_high"]) == (0, 0)
    assert line["welch_p"] == 1


def test_patients_are_resampled_not_images(table):
    """Copies of a patient's images change no interval; one patient has none."""
    copied = pd.concat([make_split()] * 4, ignore_index=True)
    copied["path"] = [f"{i}.png" for i in range(len(copied))]
    one = make_split().assign(group="p")
    generator = np.random.default_rng(0)
    noise = generator.normal(size=48)
    table.add("ours", 1, scores=make_split().assign(score=noise))
    table.add("ruff", 1, scores=copied.assign(score=np.tile(noise, 4)), known_abnormal=0.1)
    table.add("joint", 1, scores=one.assign(score=noise), known_abnormal=0.2)
    cells = read_results(table.write())
    once, four, alone = ([c.figures["test_auroc_low"], c.figures["test_auroc_high"]] for c in cells)
    assert once == pytest.approx(four) and once[0] < once[1]
    assert alone == [None, None] and cells[2].figures["test_auroc"] is not None


def test_what_is_not_finished_is_counted_and_named(table, undrawn):
    for seed in SEEDS:
        table.add("ours", seed)
    table.add("ruff", 1)
    table.add("ruff", 11, run=False, state="failed", problem="finetune: loss is nan\nin step 3")
    table.add("ruff", 111, run=False)
    torn = table.add("joint", 1)
    (torn / "metrics.json").unlink()
    other = table.add("joint", 11)
    (other / "metrics.json").write_text('{"scores_sha256": "other"}')
    table.add("joint", 111, score="reconstruction", run="cells/joint/s0001b")
    out = table.write()
    page = collect(out).read_text(encoding="utf-8")
    cells = pd.read_csv(out / "cells.csv", keep_default_na=False).set_index(["row", "seed"])
    assert len(cells) == 9
    problems = cells["problem"].to_dict()
    assert problems["ours", 1] == "" and cells.loc[("ours", 1), "state"] == "done"
    assert problems["ruff", 111] == "not run yet"
    assert problems["joint", 1] == "cells/joint/s0001 holds no metrics.json"
    assert "of other scores than scores.csv" in problems["joint", 11]
    assert "no column reconstruction" in problems["joint", 111]
    for seed in SEEDS[1:]:
        assert " ".join(problems["ruff", seed].split()) in page
    lines = pd.read_csv(out / "table1.csv").set_index("row")
    assert (lines.loc["ruff", "n"], lines.loc["ruff", "planned"]) == (1, 3)
    assert lines.loc["joint", "n"] == 0 and "0 of 3 runs" in lines.loc["joint", "warning"]
    assert ">1 of 3<" in page


def test_a_second_collect_writes_the_same_bytes(table):
    for seed in SEEDS[:2]:
        for row in ("ours", "ruff"):
            table.add(row, seed, embeddings=row == "ours")
    out = table.write()

    def content():
        collect(out)
        return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}

    first, again = content(), content()
    figures = {
        f"{n}.{kind}"
        for n in ("fig7", "fig7_raw", "fig8", "fig9")
        for kind in ("png", "svg", "csv")
    }
    assert first.keys() == figures | {"plan.csv", "cells.csv", "table1.csv", "table1.html"}
    assert first == again


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": 128}, "data.image_size is 128, but 64"),
        ({"preset": "paper"}, "the preset is paper, but quick"),
        ({"views": "augmented"}, "data.evaluation_views is augmented, but plain"),
        ({"split": make_split(seed=1)}, "the SHA-256 of split.csv is"),
    ],
)
def test_a_column_compares_like_with_like(table, change, words):
    table.add("ours", 1)
    table.add("ruff", 11, **change)
    with pytest.raises(
        InputError, match=f"cells/ruff/s0011: {words}.* cells/ours/s0001 of the same"
    ):
        collect(table.write())
    # Another share of known abnormal images is another column, other draws are other splits.
    table.lines[1]["known_abnormal"] = 0.1
    assert len(read_results(table.write())) == 2
    if "split" in change:
        table.lines[1] |= {"known_abnormal": 0.05, "split_seed": 43}
        assert len(read_results(table.write())) == 2


def test_other_scored_images_are_another_column(table):
    table.add("ours", 1)
    scores = make_split().assign(score=1.0, problem="")
    scores.loc[3, ["score", "problem"]] = [None, "cannot be read"]
    scores["split"] = make_split()["split"]
    table.add("ruff", 1, scores=scores)
    with pytest.raises(InputError, match="list of scored validation and test images"):
        collect(table.write())


def test_a_system_may_have_settings_of_its_own(table, undrawn, monkeypatch):
    own = methods.System("Own", "none", "spheres", changes={"data.image_size": 32}, note="A note.")
    systems = methods.systems() | {"own": own}
    monkeypatch.setattr(methods, "systems", lambda: systems)
    table.add("ours", 1)
    table.add("own", 1, size=32)
    out = table.write()
    assert lines_of(out)["own"]["note"] == "A note."
    page = collect(out).read_text(encoding="utf-8")
    assert '<li id="note1">A note.</li>' in page and "data.image_size 32" in page
    table.add("own", 11, size=16, preset="paper")
    with pytest.raises(InputError, match="preset is paper"):
        collect(table.write())


def test_costs_and_the_rise_of_the_validation_auroc(table):
    table.add("ours", 4)
    table.add("pretext-100nn", 4, run="cells/ours/s0004", score="score2")
    log = make_log(4, stages=("finetune",))
    table.add("ruff", 4, log=log, donor="cells/ours/s0004")
    ours, missing, ruff = read_results(table.write())
    # 4 epochs of 10 steps of 8 (16) images at 40 a second, in both stages.
    for cell in (ours, ruff):
        figures = cell.figures
        assert (figures["pretext_seconds"], figures["finetune_seconds"]) == (8, 16)
        assert figures["hours"] == pytest.approx(24 / 3600)
        assert (figures["steps"], figures["pretext_epochs"], figures["finetune_peak_gib"]) == (
            80,
            4,
            1.5,
        )
        # 50, 60, 70, 80 %: the plateau is 80, 95 % of it 76.
        assert figures["val_auroc_after_epoch_1"] == 50
        assert figures["epochs_to_plateau"] == 4
    assert not missing.done


def test_a_better_row_is_what_the_page_begins_with(table, undrawn):
    for seed in SEEDS[:2]:
        table.add("ours", seed, 0.2)
        table.add("ruff", seed, 3.0, title="Ruff <b>")
        table.add("joint", seed, -3.0)
    out = table.write()
    text = collect(out).read_text(encoding="utf-8")
    begin = text.index('id="headline"')
    headline = text[begin : text.index("</ul>", begin)]
    assert "Ruff &lt;b&gt; has a higher mean test AUROC than Ours" in headline
    assert "Joint" not in headline and "<b>" not in text
    assert text.index('id="headline"') < text.index('id="table1"')


def test_the_headline_says_on_how_many_shared_runs_a_difference_is(table):
    """The means are of all runs, the difference of those that both rows have."""
    for seed in SEEDS:
        table.add("ours", seed, 0.2)
    table.add("ruff", 1, 3.0)
    rows = build_rows(read_results(table.write()), methods.systems())
    (line,) = _headlines(rows)
    assert "n 1 and 3; Ours minus it over the same patients in 1 shared runs" in line


def test_a_run_with_other_settings_is_not_the_cells(tmp_path):
    """As where the run of another seed was copied, or was made by hand with other options."""
    out, cells = make(tmp_path, ["ours", "uni-modal"], [1])
    scores = make_split().assign(score=1.0)
    for cell in cells:
        write_run(out / cell.run, scores)
        text = (out / "settings" / f"{cells[0].digest}.yaml").read_text()
        (out / cell.run / "config.yaml").write_text(text)
    ours, other = read_results(out)
    assert ours.done and not other.done
    assert (
        other.problem == f"{other.run}: is of another run: planned with finetune.centers 1, now 100"
    )


def test_draws_with_other_test_sets_do_not_narrow_the_interval_of_a_difference(table):
    """Test sets that are drawn anew share patients; they are no independent test sets."""
    for draw in range(42, 46):
        generator = np.random.default_rng(draw)
        split = make_split()
        names = generator.permutation(24)  # other patients of the same number
        split["group"] = [f"p{names[i // 2]:02d}" for i in range(len(split))]
        for row, quality in (("ours", 1.5), ("ruff", 0.3)):
            scores = split.assign(score=generator.normal(size=48) + quality * split["label"])
            table.add(row, 1, scores=scores, run=f"cells/{row}/d{draw}", split_seed=draw)
    cells = read_results(table.write())
    ours, ruff = cells[::2], cells[1::2]
    widths = [
        np.ptp(np.percentile(a.resamples["test"] - b.resamples["test"], [2.5, 97.5]))
        for a, b in zip(ours, ruff, strict=True)
    ]
    (row,) = [row for row in build_rows(cells, methods.systems()) if row.name == "ruff"]
    assert row.pairs == 4
    assert row.bootstrap[2] - row.bootstrap[1] == pytest.approx(np.mean(widths))


def test_a_table_without_a_finished_run_is_a_page(table):
    table.add("ours", 1, run=False)
    out = table.write()
    text = collect(out).read_text(encoding="utf-8")
    assert "Nothing can be compared with Ours yet" in text and "No run is finished" in text
    assert not list(out.glob("fig*"))


def test_a_folder_without_a_plan_is_no_table(tmp_path):
    with pytest.raises(InputError, match="holds no plan.csv with cells; `selftaught table1`"):
        collect(tmp_path)


def test_every_published_row_is_a_system_of_the_paper():
    systems = methods.systems()
    assert all(name in systems and not systems[name].extra for name, _ in published_rows())
    assert {*BARS, *CURVES} <= systems.keys()
    paper = {name for name, system in systems.items() if not system.extra}
    assert paper == {name for name, _ in published_rows()}


def test_images_without_group_are_groups_of_their_own(table):
    split = make_split().assign(group="")
    for row in ("ours", "ruff"):
        table.add(row, 1, split=split)
    ours, ruff = read_results(table.write())
    assert ours.figures["images_sha256"] == ruff.figures["images_sha256"]
    assert json.dumps(ours.figures["test_auroc_low"]) != "null"


def test_published_tests_use_the_population_sd():
    """Sample SDs in place of population SDs would be 15 % too wide for four replicates."""
    rows = published_rows()
    ours, ruff = rows["ours", 0.05], rows["ruff", 0.05]
    assert ours.summary == (78.04, pytest.approx(0.39 / 1.96), 4)
    assert ruff.welch == welch_from_summary(ours.summary, ruff.summary)
