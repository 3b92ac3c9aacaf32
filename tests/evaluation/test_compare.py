"""Comparing runs: paired draws of patients, and a refusal where the test images differ."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from selftaught.cli.main import main
from selftaught.errors import InputError
from selftaught.evaluation import compare as module
from selftaught.evaluation.compare import compare, other_settings, render_page
from selftaught.evaluation.metrics import evaluate
from selftaught.evaluation.run_files import read_run

N = 160


@pytest.fixture
def make(tmp_path):
    """Run folders of one set: 40 test patients of four images; noise is of a run's scores."""
    generator = np.random.default_rng(5)
    label = np.repeat(generator.random(N // 4) < 0.4, 4).astype(int)
    # What is hard about a patient is hard for every run.
    hard = np.repeat(generator.normal(size=N // 4), 4) * 2

    def build(name, noise=0.1, edit=lambda table: table, config=None):
        own = np.random.default_rng([len(name), *name.encode()])
        table = pd.DataFrame(
            {
                "path": [f"{row:03d}.png" for row in range(N)],
                "split": "test",
                "label": label,
                "score": 2 * label + hard + noise * own.normal(size=N),
                "group": [f"p{row // 4}" for row in range(N)],
            }
        )
        table = edit(table)
        run = tmp_path / name
        run.mkdir(parents=True)
        table.to_csv(run / "scores.csv", index=False)
        (run / "metrics.json").write_text(json.dumps(evaluate(table, seed=1, resamples=2)))
        (run / "config.yaml").write_text(json.dumps({"out": name, "seed": 1, **(config or {})}))
        return run

    return build


def compared(*runs):
    return compare([read_run(run) for run in runs], [run.name for run in runs])


def test_interval_of_the_difference_is_of_paired_draws_of_patients(make):
    a, b = make("a"), make("b", noise=0.3, edit=lambda table: table.sample(frac=1, random_state=0))
    row = compared(a, b).iloc[1]
    tables = [pd.read_csv(run / "scores.csv").set_index("path").sort_index() for run in (a, b)]
    groups = [rows.to_numpy() for rows in pd.Series(range(N)).groupby(np.arange(N) // 4).groups
              .values()]  # fmt: skip
    label, scores = tables[0]["label"].to_numpy(), [table["score"].to_numpy() for table in tables]
    generator, differences = np.random.default_rng(0), []
    for _ in range(2000):
        rows = np.concatenate([groups[i] for i in generator.integers(len(groups), size=40)])
        drawn, abnormal = [one[rows] for one in scores], label[rows] == 1
        aurocs = [(one[abnormal, None] > one[~abnormal]).mean() for one in drawn]
        differences.append(aurocs[1] - aurocs[0])
    low, high = np.percentile(differences, [2.5, 97.5])
    width = high - low
    assert row["difference"] == pytest.approx(
        roc_auc_score(label, scores[1]) - roc_auc_score(label, scores[0]), abs=1e-12
    )
    assert row["difference_low"] == pytest.approx(low, abs=0.15 * width)
    assert row["difference_high"] == pytest.approx(high, abs=0.15 * width)
    assert width < 0.3 * (row["auroc_high"] - row["auroc_low"])  # unpaired it would be wider


def test_equal_scores_differ_by_nothing_and_others_by_much(make):
    a, b = make("a"), make("b")
    (b / "scores.csv").write_bytes((a / "scores.csv").read_bytes())
    noise = make(
        "noise", edit=lambda table: table.assign(score=-table["score"] - 9 * table["label"])
    )
    table = compared(a, b, noise)
    assert table["difference"][1] == 0 and table["p"][1] == 1
    assert table["difference_high"][2] < 0 and table["p"][2] == pytest.approx(2 / 2001)
    assert table["p_holm"][2] == pytest.approx(2 * table["p"][2])
    assert np.isnan(table["p"].astype(float)[0])


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t[8:], "its 152 labelled test images are not the 160 of a: 0 are in b alone, 8"),
        (lambda t: t.assign(path="x" + t["path"]), "160 are in b alone, 160 in a alone"),
        (lambda t: t.assign(label=t["label"].where(t.index > 3, 1 - t["label"])), "4 of 160 test"),
        (lambda t: t.assign(group=t["group"].where(t.index > 2, "q")), "3 of 160 test images have "
         "another group"),
        (lambda t: t.assign(score=t["score"].where(t.index > 0)), "000.png: score is nan"),
    ],
)  # fmt: skip
def test_other_test_images_are_refused_with_the_counts(make, edit, words):
    a = make("a")
    b = make("b")
    edit(pd.read_csv(b / "scores.csv")).to_csv(b / "scores.csv", index=False)
    with pytest.raises(InputError, match=re.escape(words)):
        compared(a, b)


def test_one_run_alone_and_one_twice_are_refused(make):
    a = make("a")
    with pytest.raises(InputError, match="two or more"):
        compared(a)
    with pytest.raises(InputError, match="given twice"):
        compared(a, a)


def test_few_patients_have_a_difference_and_no_interval(make, monkeypatch):
    one = {"edit": lambda table: table.assign(group=np.where(table["label"] == 1, "x", "y"))}
    row = compared(make("a", **one), make("b", noise=1, **one)).iloc[1]
    assert np.isfinite(row["difference"]) and pd.isna(row["difference_low"]) and pd.isna(row["p"])


def test_page_shows_what_differs_and_escapes_it(make):
    runs = [
        read_run(make("a", config={"finetune": {"lr": 1.0, "epochs": 3}})),
        read_run(make("b", noise=3, config={"finetune": {"lr": "<b>", "epochs": 3}})),
    ]
    assert other_settings(runs) == [("finetune.lr", ["1.0", "<b>"])]
    page = render_page(compare(runs, ["a", "<i>"]), runs)
    assert "<i>" not in page and "<b>" not in page and "&lt;b&gt;" in page
    assert f"{module.RESAMPLES:,} resamples" in page and "://" not in page


def test_command_writes_a_table_and_a_page_and_replaces_only_its_own(make, tmp_path, capsys):
    a, b, out = make("x/run"), make("y/run", noise=2), tmp_path / "out"
    assert main(["compare", str(a), str(b), "--out", str(out)]) == 0
    assert "y/run" in capsys.readouterr().out
    table = pd.read_csv(out / "compare.csv")
    assert table["run"].tolist() == ["x/run", "y/run"] and table["images"].tolist() == [N, N]
    assert main(["compare", str(b), str(a), "--out", str(out)]) == 0
    for run, words in ((a, "holds"), (a / "scores.csv", "is a file")):
        assert main(["compare", str(a), str(b), "--out", str(run)]) == 2
        assert words in capsys.readouterr().err
    assert main(["compare", str(a), str(tmp_path / "none")]) == 2
    assert "no such run folder" in capsys.readouterr().err
