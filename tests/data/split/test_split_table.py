import pandas as pd
import pytest

from selftaught.data.split import read_split, split_table, write_split
from selftaught.errors import InputError


def small_frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "path": pd.Series(["a.png", "b, c.png", "d.png", "ö.png", "e.png"], dtype="str"),
            "split": pd.Series(["train", "train", "val", "test", "unused"], dtype="str"),
            "semi_label": pd.Series([1, -1, 0, 0, 0], dtype="int8"),
            "label": pd.Series([0, 1, 0, None, 1], dtype="Int8"),
            "group": pd.Series(["g", "g", "h", "i", "j"], dtype="str"),
            "note": pd.Series(["", 'say "x"', "two\nlines", "=cmd()", " ;"], dtype="str"),
            "": pd.Series(["0", "1", "2", "3", "4"], dtype="str"),
        }
    )


@pytest.mark.parametrize("hard", ["cr\rend ", "a\r\nb", "", '"', "'", "\u2028 \x85", ",", " #"])
def test_round_trip_is_exact(tmp_path, hard):
    frame = small_frame()
    frame.loc[4, ["note", "group"]] = hard
    write_split(frame, tmp_path / "split.csv")
    pd.testing.assert_frame_equal(frame, read_split(tmp_path / "split.csv"))
    assert [path.name for path in tmp_path.iterdir()] == ["split.csv"]
    text = (tmp_path / "split.csv").read_bytes()
    write_split(read_split(tmp_path / "split.csv"), tmp_path / "split.csv")
    assert (tmp_path / "split.csv").read_bytes() == text


def test_promised_columns_come_first(tmp_path):
    frame = small_frame()
    write_split(frame[frame.columns[::-1]], tmp_path / "split.csv")
    read = read_split(tmp_path / "split.csv")
    assert list(read.columns[:5]) == ["path", "split", "semi_label", "label", "group"]
    pd.testing.assert_frame_equal(read[frame.columns], frame)


def test_counts():
    table = split_table(small_frame())
    assert list(table.index) == ["train", "val", "test", "unused", "all"]
    assert table.loc["train"].to_dict() == {
        "images": 2,
        "groups": 1,
        "normal": 1,
        "abnormal": 1,
        "unlabelled": 0,
        "known_normal": 1,
        "known_abnormal": 1,
        "unknown": 0,
    }
    assert list(table["images"]) == [2, 1, 1, 1, 5]
    assert list(table["groups"]) == [1, 1, 1, 1, 4]
    assert list(table["unlabelled"]) == [0, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("path,split", "file,split", 'split.csv row 1: needs the column "path" once'),
        ("group,note", "note,note", 'row 1: needs the column "group" once'),
        ("d.png,val,0", "d.png,dev,0", 'row 4: split is "dev"; allowed: train, val, test, unused'),
        ("d.png,val,0", "d.png,,0", 'row 4: split is ""; allowed: train, val, test, unused'),
        ("d.png,val,0", "d.png,val,", 'row 4: semi_label is ""; allowed'),
        ("d.png,val,0", "a.png,val,0", 'row 4: path "a.png" was already given in split.csv row 2'),
        ("d.png,val,0,0", "d.png,val,0,2", 'row 4: label is "2"; allowed: 0, 1 or blank'),
        ("d.png,val,0,0", "d.png,val,-1,0", "row 4: semi_label is -1 but label is 0"),
        ("d.png,val,0,0", "d.png,val,0,0,0", "row 4: 8 cells; the header has 7"),
    ],
)
def test_damaged_files_are_refused(tmp_path, old, new, message):
    write_split(small_frame(), tmp_path / "split.csv")
    text = (tmp_path / "split.csv").read_text()
    assert old in text
    (tmp_path / "split.csv").write_text(text.replace(old, new))
    with pytest.raises(InputError) as caught:
        read_split(tmp_path / "split.csv")
    assert message in str(caught.value)


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(InputError, match="split.csv: cannot be read"):
        read_split(tmp_path / "split.csv")
    (tmp_path / "split.csv").write_text("")
    with pytest.raises(InputError, match="split.csv: empty"):
        read_split(tmp_path / "split.csv")
