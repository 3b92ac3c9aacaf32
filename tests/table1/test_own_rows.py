"""Rows of a user's own: what they are made from, what is refused, what a table keeps of them."""

from pathlib import Path

import pytest

from selftaught import methods
from selftaught.errors import InputError
from selftaught.table1.own_rows import keep, kept, read_rows, systems


def rows_of(tmp_path, text):
    path = tmp_path / "rows.yaml"
    path.write_text(text)
    return read_rows(path)


def test_a_row_is_its_system_with_what_it_sets(tmp_path):
    rows = rows_of(
        tmp_path,
        "one: {system: uni-modal, title: One, set: {finetune.lr: 1.0e-3, data.image_size: 32}}\n"
        "two: {system: one, score: knn_score, set: {finetune.method: classifier, model: "
        "{stem: small}}, note: A note.}\n"
        "three: {system: ours, against: uni-modal}\n",
    )
    one, two, three = rows.values()
    base = methods.systems()["uni-modal"]
    assert (one.title, one.pretext, one.finetune, one.score) == (
        "One",
        "ntxent",
        "spheres",
        "score",
    )
    assert one.changes == {**base.changes, "finetune.lr": 1e-3, "data.image_size": 32}
    assert two.finetune == "classifier" and two.score == "knn_score" and two.note == "A note."
    assert two.changes == {**one.changes, "model.stem": "small"} and two.title == "two"
    assert [one.against, two.against, three.against] == ["uni-modal", "one", "uni-modal"]
    assert all(row.extra for row in rows.values())


def test_the_rows_of_the_ablation():
    rows = read_rows(Path(__file__).parents[2] / "launch" / "configs" / "ablation.yaml")
    assert rows["a5-logistic-all"].changes["split.labels"] == "all"
    assert "split.labels" not in rows["a5-logistic"].changes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ours: {system: uni-modal}", "row 'ours'; allowed: a name of"),
        ("A_0: {system: ours}", "row 'A_0'; allowed: a name of"),
        ("../a: {system: ours}", "row '../a'; allowed: a name of"),
        ("7: {system: ours}", "row 7; allowed: a name of"),
        ("a: {title: A}", "allowed: system, and perhaps title"),
        ("a: ours", "allowed: system, and perhaps title"),
        ("a: {system: ours, sets: {}}", "allowed: system, and perhaps title"),
        ("a: {system: theirs}", "there is no system 'theirs'"),
        ("b: {system: a}\na: {system: ours}", "there is no system 'a'"),
        ("a: {system: ours, title: 3}", "title is 3; allowed: text"),
        ("a: {system: ours, set: [finetune.lr]}", "set is .*; allowed: options by dotted name"),
        ("a: {system: ours, set: {seed: 3}}", "set names seed; allowed"),
        ("a: {system: ours, set: {split.known_abnormal: 0.2}}", "set names split.known_abnormal"),
        ("a: {system: ours, set: {split: {folds: 2}}}", "set names split.folds"),
        ("a: {system: ours, set: {data.manifest: x}}", "set names data.manifest"),
        ("a: {system: ours, set: {finetune.method: none_such}}", "finetune.method: method is"),
        ("- a", "holds list; allowed: a mapping"),
    ],
)
def test_a_file_that_is_wrong_is_refused_in_one_line(tmp_path, text, said):
    with pytest.raises(InputError, match=said) as error:
        rows_of(tmp_path, text)
    assert "\n" not in str(error.value) and "rows.yaml" in str(error.value)


def test_a_table_keeps_its_rows_and_refuses_others_of_the_same_name(tmp_path):
    rows = rows_of(tmp_path, "a: {system: ours, set: {model.head: [64, 8], finetune.lr: 1.0e-3}}")
    assert kept(tmp_path) == {}
    keep(tmp_path, rows)
    keep(tmp_path, rows)
    more = rows_of(tmp_path, "b: {system: uni-modal}")
    keep(tmp_path, more)
    assert kept(tmp_path) == {**rows, **more}
    assert systems(tmp_path) == {**methods.systems(), **rows, **more}
    with pytest.raises(InputError, match="row b was planned with against 'uni-modal', now 'ours'"):
        keep(tmp_path, rows_of(tmp_path, "b: {system: ours, set: {finetune.centers: 1}}"))
    (tmp_path / "rows.json").write_text('{"a": {"name": "a"}}')
    with pytest.raises(InputError, match="rows.json: is damaged"):
        kept(tmp_path)
