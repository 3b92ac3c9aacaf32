"""Readers' labels: a file that loses nothing, and a run that uses it without moving an image."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest

from selftaught.cli.main import main
from selftaught.data.reader_labels import COLUMNS, LabelFile, current, read_rows
from selftaught.data.split import read_split
from selftaught.errors import InputError
from tests import tiny

HEAD = ",".join(COLUMNS) + "\n"
FACTS = {"who": "eva", "hidden": False, "model": "m"}
# Appends labels until it is killed, and says after each that it is kept.
WRITER = """
import sys
from pathlib import Path
from selftaught.data.reader_labels import LabelFile
file = LabelFile(Path(sys.argv[1]))
for number in range(10**6):
    file.append(f"{number}, a.png", "normal", who="eva", hidden=True, model="m")
    print(number, flush=True)
"""


def test_no_label_is_lost_by_a_kill(tmp_path):
    path = tmp_path / "labels.csv"
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        told = [writer.stdout.readline() for _ in range(20)]
        with pytest.raises(InputError, match="another selftaught look appends to it"):
            LabelFile(path)
        writer.kill()
        told += writer.stdout.readlines()
    kept = [row.path for row in read_rows(path)]
    assert [f"{number}, a.png" for number in range(len(told))] == kept[: len(told)]
    file = LabelFile(path)
    file.append("b.png", "unsure", **FACTS)
    file.close()
    assert [row.path for row in read_rows(path)] == [*kept, "b.png"]


def test_a_row_that_a_crash_left_unfinished_is_cut_off(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text(HEAD + "a.png,normal,eva,now,shown,m,\nb.png,abno")
    file = LabelFile(path)
    assert file.cut and current(file.rows) == {"a.png": "normal"}
    file.append("c.png", "abnormal", **FACTS)
    file.close()
    assert [row.path for row in read_rows(path)] == ["a.png", "c.png"]
    path.write_text(HEAD + "a.png,normal,eva,now,shown,m,")  # whole, saved by an editor
    file = LabelFile(path)
    file.append("c.png", "abnormal", **FACTS)
    file.close()
    assert not file.cut and [row.path for row in read_rows(path)] == ["a.png", "c.png"]
    path.write_text(HEAD.strip())
    file = LabelFile(path)
    file.append("c.png", "abnormal", **FACTS)
    file.close()
    assert [row.path for row in read_rows(path)] == ["c.png"]


@pytest.mark.parametrize("text", ["path,label\na.png,normal\n", "my notes\n", "my notes"])
def test_a_file_of_another_kind_is_left_alone(text, tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(InputError, match="is no labels file of this command"):
        LabelFile(path)
    assert path.read_text() == text


def split(manifest, out, *more, labels=None, known=0.15):
    """The split table of a run that goes no further."""
    options = tiny.options(manifest, out, **{"split.known_abnormal": known})
    if labels is not None:
        options += ["--data.labels", str(labels)]
    from selftaught.cli.options import read_config
    from selftaught.training.run import run

    run(read_config("run", "", [*options, *more]), ("split",))
    return read_split(out / "split.csv").set_index("path")


def write(path, rows):
    text = "".join(f"{film},{label},eva,now,shown,m,\n" for film, label in rows)
    path.write_text(HEAD + text)
    return path


def test_a_run_uses_labels_and_moves_no_image(tmp_path, capsys):
    manifest = tiny.write_images(tmp_path / "set")
    table = pd.read_csv(manifest, dtype=str, keep_default_na=False)
    table.loc[::4, "label"] = ""
    table.to_csv(manifest, index=False)
    before = split(manifest, tmp_path / "a")
    assert "labels of readers" not in capsys.readouterr().out
    unknown = before[(before["split"] == "train") & (before["semi_label"] == 0)]
    blank = unknown[unknown["label"].isna()].index
    normal = unknown[unknown["label"] == 0].index
    known = before[before["semi_label"] != 0].index
    tested = before[(before["split"] == "test") & (before["label"] == 0)].index
    rows = [(blank[0], "normal"), (blank[1], "abnormal"), (normal[0], "abnormal")]
    rows += [(normal[0], "normal"), (known[0], "unsure"), (tested[0], "abnormal")]
    rows += [(blank[2], "abnormal"), (blank[2], "")]  # undone
    labels = write(tmp_path / "labels.csv", rows)
    after = split(manifest, tmp_path / "b", labels=labels)
    assert (after["split"] == before["split"]).all()
    changed = [blank[0], blank[1], normal[0], known[0], tested[0]]
    assert after.loc[changed, "label"].fillna(-1).tolist() == [0, 1, 0, -1, 1]
    assert after.loc[changed, "semi_label"].tolist() == [1, -1, 1, 0, 0]
    rest = before.index.difference(changed)
    pd.testing.assert_frame_equal(after.loc[rest], before.loc[rest])
    out = " ".join(capsys.readouterr().out.split())
    assert "labels of readers: 5 images (4 train, 1 test); 2 given labels changed" in out
    assert "(1 to unknown), 2 blank ones filled" in out
    assert "2 known normal, 1 known abnormal" in out
    # More labels while it is stopped: it goes on with those that it began with, and says so.
    with labels.open("a") as more:
        more.write(f"{normal[1]},abnormal,eva,now,shown,m,\n")
    again = split(manifest, tmp_path / "b", labels=labels)
    assert "goes on with what it began with" in capsys.readouterr().out
    pd.testing.assert_frame_equal(again, after)
    assert "labels_sha256" in json.loads((tmp_path / "b" / "environment.json").read_text())


def test_labels_alone_decide_the_split_of_a_list_that_has_none(tmp_path, capsys):
    manifest = tiny.write_images(tmp_path / "set", 24)
    table = pd.read_csv(manifest, dtype=str)
    rows = [
        (path, ("normal", "abnormal")[int(is_)]) for path, is_ in table[["path", "label"]].values
    ]
    table.drop(columns="label").to_csv(manifest, index=False)
    after = split(manifest, tmp_path / "a", labels=write(tmp_path / "labels.csv", rows[:20]))
    assert after["label"].notna().sum() == 20
    train = after[(after["split"] == "train") & after["label"].notna()]
    assert (train["semi_label"] != 0).all() and len(train) > 5
    assert "those of readers decide it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEAD + "gone.png,normal,eva,now,shown,m,\n", '"gone.png", which data.manifest does not'),
        (HEAD + "000.png,maybe,eva,now,shown,m,\n", 'labels.csv row 2: label is "maybe"'),
        ("film,label\n000.png,normal\n", 'labels.csv row 1: needs the column "path" once'),
        (HEAD + "000.png,normal\n", "labels.csv row 2: 2 cells; the header has 7"),
        (None, "labels.csv: cannot be read"),
    ],
)
def test_wrong_labels_end_in_one_line(text, expected, tmp_path, capsys):
    manifest = tiny.write_images(tmp_path / "set", 12)
    path = tmp_path / "labels.csv"
    if text is not None:
        path.write_text(text)
    options = tiny.options(manifest, tmp_path / "out", **{"data.labels": path})
    assert main(["run", *options]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists() or os.listdir(tmp_path / "out") == [], error
