"""No command writes over a file of the user's, or of another command."""

import json

import pandas as pd
import pytest

from selftaught.cli.main import main
from selftaught.cli.outputs import check_out
from selftaught.errors import InputError
from tests.tiny import write_images


@pytest.fixture
def manifest(tmp_path):
    return write_images(tmp_path / "images")


@pytest.fixture
def scores(tmp_path):
    table = pd.DataFrame({"path": list("abcdef"), "label": [0, 1] * 3, "score": range(6)})
    table.to_csv(tmp_path / "new.csv", index=False)
    return tmp_path / "new.csv"


def refused(capsys, *arguments):
    assert main([str(word) for word in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", "path,label\nx.png,0\n"), ("a.csv", "\x00\ufffe"), ("a.json", '{"mine": 1}')],
)
def test_what_is_something_else_stays(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError, match="exists and was not written by this command"):
        check_out(path, ("path", "score"), path.suffix)
    assert path.read_text() == content


def test_its_like_an_empty_file_and_a_new_one_are_written(tmp_path):
    (tmp_path / "old.csv").write_text("path,more,score\n")
    (tmp_path / "empty.csv").touch()
    for name in ("old.csv", "empty.csv", "new.csv"):
        check_out(tmp_path / name, ("path", "score"))


@pytest.mark.parametrize("name", ["model.json", "film.png", "scores"])
def test_scores_go_to_a_csv_file(manifest, tmp_path, capsys, name):
    (tmp_path / name).write_text("precious")
    words = ("score", tmp_path, "--data.manifest", manifest, "--out", tmp_path / name)
    assert "allowed: a .csv file" in refused(capsys, *words)
    assert (tmp_path / name).read_text() == "precious"


def test_scores_do_not_replace_another_table(manifest, tmp_path, capsys):
    (tmp_path / "patients.csv").write_text("patient,age\np1,40\n")
    words = ("score", tmp_path, "--data.manifest", manifest, "--out", tmp_path / "patients.csv")
    assert "patients.csv: exists" in refused(capsys, *words)


@pytest.mark.parametrize("name", ["set.csv", "set.json", "set_leakage.csv"])
def test_a_split_replaces_splits_only(manifest, tmp_path, capsys, name):
    out = tmp_path / "set.csv"
    assert main(["split", str(manifest), "--out", str(out)]) == 0
    assert main(["split", str(manifest), "--out", str(out)]) == 0
    capsys.readouterr()
    mine = '{"a": 1}' if name.endswith("json") else "patient,age\np1,40\n"
    (tmp_path / name).write_text(mine)
    assert f"{name}: exists" in refused(capsys, "split", manifest, "--out", out)
    assert (tmp_path / name).read_text() == mine


def test_metrics_of_other_scores_leave_those_of_the_run_alone(scores, capsys):
    """Nor do they need a column that only a run's scores have."""
    (scores.parent / "metrics.json").write_text("the run's")
    assert main(["evaluate", str(scores)]) == 0
    assert "count as test" in capsys.readouterr().out
    made = json.loads((scores.parent / "new_metrics.json").read_text())
    assert made["test"]["auroc"] == pytest.approx(2 / 3)
    assert (scores.parent / "metrics.json").read_text() == "the run's"
    assert main(["evaluate", str(scores)]) == 0
    capsys.readouterr()
    for out in (scores, scores.parent / "metrics.json"):
        refused(capsys, "evaluate", scores, "--out", out)
    assert scores.read_text().startswith("path,label,score")
