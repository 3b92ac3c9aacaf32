import hashlib
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from selftaught.cli.main import main
from selftaught.data.manifest import Manifest, read_manifest
from selftaught.data.manifest.spelling import ManifestWarning
from selftaught.errors import InputError

COLUMNS = ["path", "label", "patient", "study", "body_part", "mask", "split", "semi_label"]


def write(tmp_path: Path, text: str | bytes, files: tuple[str, ...] = ()) -> Path:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    path = tmp_path / "manifest.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def read(tmp_path: Path, text: str | bytes, **options) -> Manifest:
    return read_manifest(write(tmp_path, text), **{"check_files": False, **options})


def refused(tmp_path: Path, text: str | bytes, **options) -> str:
    with pytest.raises(InputError) as caught:
        read(tmp_path, text, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and message.isprintable() and len(message) < 400
    return message


def test_columns_and_types(tmp_path):
    text = "site,label,path,grade\n a ,0,x/a.png,=cmd()\nNA,,b.png,1e5\n,1.0,c.png,007\n"
    manifest = read(tmp_path, text)
    table = manifest.table
    assert list(table.columns) == [*COLUMNS, "site", "grade"]
    assert isinstance(table.index, pd.RangeIndex) and table.index[0] == 0
    assert manifest.root == tmp_path
    assert table["label"].dtype == table["semi_label"].dtype == "Int8"
    assert table["label"].isna().tolist() == [False, True, False]
    assert table["label"].dropna().tolist() == [0, 1]
    assert table["semi_label"].isna().all()
    assert table["site"].tolist() == [" a ", "NA", ""]
    assert table["grade"].tolist() == ["=cmd()", "1e5", "007"]
    for name in ("patient", "study", "body_part", "mask", "split"):
        assert table[name].tolist() == ["", "", ""]


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfpath,label\na.png,0\nb.png,1\n",
        b"path,label\r\na.png,0\r\nb.png,1\r\n",
        b"path,label\ra.png,0\rb.png,1\r",
        b"path,label\n\na.png,0\n,\nb.png,1\n\n\n",
        b'"path","label"\n"a.png","0"\n"b.png","1"',
        b"path,label\n./a.png,0.0\n.//b.png,1.0\n",
        b"path,label,,\na.png,0,,\nb.png,1,,\n",
    ],
)
def test_dialects_give_the_same_table(tmp_path, text):
    table = read(tmp_path, text).table
    assert table["path"].tolist() == ["a.png", "b.png"]
    assert table["label"].tolist() == [0, 1]
    assert list(table.columns) == COLUMNS


def test_a_pandas_index_column_is_kept(tmp_path):
    assert read(tmp_path, ",path\n0,a.png\n1,b.png\n").table[""].tolist() == ["0", "1"]


@pytest.mark.parametrize(
    "cell",
    [
        "2",
        "Normal ",
        "normal",
        " 1",
        "1 ",
        "nan",
        "NaN",
        "NA",
        "True",
        "-1",
        "1.5",
        "1e0",
        "=1",
        "١",
    ],
)
def test_labels_that_are_refused(tmp_path, cell):
    rows = "".join(f"{i}.png,{i % 2}\n" for i in range(15))
    message = refused(tmp_path, f"path,label\n{rows}x.png,{cell}\ny.png,5\n")
    assert message == f'manifest.csv row 17: label is "{cell}"; allowed: 0, 1 or blank'


def test_blank_lines_count_as_rows(tmp_path):
    message = refused(tmp_path, "path,label\n\na.png,0\n\n\nb.png,7\n")
    assert message.startswith('manifest.csv row 6: label is "7"')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "manifest.csv: empty"),
        ("\n\n", "manifest.csv: empty"),
        ("path,label\n", "manifest.csv: no rows below the header"),
        ("file,label\na.png,1\n", 'row 1: no column "path"; found: "file", "label"; allowed'),
        ("path;label\na.png;1\n", 'row 1: no column "path"; found: "path;label"; allowed: comma'),
        ("path,label,label\na.png,1,0\n", 'row 1: column "label" appears twice'),
        ("path,Label\na.png,1\n", 'row 1: column "Label"; write it as "label"'),
        ("path, label\na.png,1\n", 'row 1: column " label"; write it as "label"'),
        ("path,label\na.png,1\nb.png\n", "row 3: 1 cells; the header has 2"),
        ("path,label\na.png,1,2\n", "row 2: 3 cells; the header has 2"),
        ('path,label\na.png,"1\n', "row 2: not valid CSV"),
        ('path,label\n"a"x.png,1\n', "row 2: not valid CSV"),
        ("path,label\na.png,1\nb.png,0\na.png,1\n", 'row 4: path "a.png" was already given in '),
        ("path\na/b.png\na//b.png\n", 'row 3: path "a/b.png" was already given in manifest.csv'),
        ("path,split\na.png,valid\n", 'row 2: split is "valid"; allowed: train, val, test, unus'),
        ("path,split\na.png,Train\n", 'row 2: split is "Train"'),
        ("path,label,semi_label\na.png,1,2\n", 'semi_label is "2"; allowed: -1, 0, 1 or blank'),
        ("path,label,semi_label\na.png,1,1\n", "row 2: semi_label is 1 but label is 1; allowed"),
        ("path,label,semi_label\na.png,0,-1\n", "row 2: semi_label is -1 but label is 0; allowed"),
        ("path,label,semi_label\na.png,,-1\n", "row 2: semi_label is -1 but label is blank"),
        (b"path,label\na.png,1\n\xe9.png,0\n", "row 3: byte 0xe9 is not UTF-8; allowed: UTF-8"),
        ("path,label\n".encode("utf-16"), "row 1: byte 0xff is not UTF-8"),
        (b"path,label\na.png,1\nb\0.png,0\n", "row 3: holds a NUL character"),
        ("path,note\na.png," + "x" * 1_000_000 + "\n", "row 2: not valid CSV: field larger than"),
        ("path,label\na.png," + "x" * 100_000 + "\n", 'row 2: label is "xxx'),
        ("path,label\na.png,\x1b[31m\n", r'label is "\x1b[31m"'),
        ("path,label\n,1\n", 'row 2: path is ""; allowed: the path of a file'),
        ('path,label\n"a\nb.png",1\n', r'path is "a\nb.png"; allowed: a path without control'),
    ],
)
def test_one_clear_line(tmp_path, text, message):
    assert message in refused(tmp_path, text)


@pytest.mark.parametrize("value", ["-1", "-1.0"])
def test_semi_labels(tmp_path, value):
    text = f"path,label,semi_label\na.png,1,{value}\nb.png,0,+1\nc.png,0,0\nd.png,,0\ne.png,1,\n"
    semi = read(tmp_path, text).table["semi_label"]
    assert semi[:4].tolist() == [-1, 1, 0, 0] and semi.isna()[4]


OUTSIDE = ["../a.png", "x/../../a.png", "x/../a.png", "..", "/etc/passwd", "x/.."]
NEVER = [
    "C:\\a.png",
    "C:/a.png",
    "c:a.png",
    "\\\\host\\share\\a.png",
    "//host/share/a.png",
    "a\\b.png",
    "http://host/a.png",
    "S3://bucket/a.png",
    "file:a.png",
    "data:image/png;base64",
    ".",
    "./",
    "/",
    "a\tb.png",
]


@pytest.mark.parametrize("column", ["path", "mask"])
@pytest.mark.parametrize("cell", OUTSIDE + NEVER)
def test_paths_that_leave_the_folder(tmp_path, cell, column):
    header, row = (
        ("path,label", f'"{cell}",1') if column == "path" else ("path,mask", f'b,"{cell}"')
    )
    text = f"{header}\nok.png,\n{row}\n"
    assert f"manifest.csv row 3: {column} is " in refused(tmp_path, text)
    if cell in NEVER or cell == "..":
        refused(tmp_path, text, allow_outside=True)
    else:
        assert read(tmp_path, text, allow_outside=True).table[column][1] == cell


@pytest.mark.parametrize(
    "cell", ["a b.png", "ä/ö.png", "..a.png", "a..png", "ab:c.png", "~/a", ".h/x"]
)
def test_paths_that_stay(tmp_path, cell):
    assert read(tmp_path, f"path\n{cell}\n").table["path"].tolist() == [cell]


def test_files_must_exist(tmp_path):
    text = "path,label,mask\nx/a.png,0,\n\nx/b.png,1,m/b.png\n"
    path = write(tmp_path, text, ("x/a.png", "x/b.png", "m/b.png"))
    assert len(read_manifest(path).table) == 2
    (tmp_path / "m/b.png").unlink()
    with pytest.raises(InputError, match='manifest.csv row 4: mask "m/b.png" was not found'):
        read_manifest(path)
    (tmp_path / "x/a.png").unlink()
    with pytest.raises(InputError, match='manifest.csv row 2: path "x/a.png" was not found'):
        read_manifest(path)
    (tmp_path / "x/a.png").mkdir()
    with pytest.raises(InputError, match='row 2: path "x/a.png" is not a file'):
        read_manifest(path)
    assert len(read_manifest(path, check_files=False).table) == 2


@pytest.mark.parametrize("kind", ["file", "folder", "loop", "dangling"])
def test_links_out_of_the_folder_are_refused(tmp_path, kind):
    inside, outside = tmp_path / "set", tmp_path / "set-secret"
    (inside / "x").mkdir(parents=True)
    outside.mkdir()
    (outside / "a.png").write_bytes(b"")
    if kind == "file":
        (inside / "x" / "a.png").symlink_to(outside / "a.png")
    elif kind == "folder":
        (inside / "x").rmdir()
        (inside / "x").symlink_to(outside)
    elif kind == "loop":
        (inside / "x" / "a.png").symlink_to(inside / "x" / "a.png")
    else:
        (inside / "x" / "a.png").symlink_to(inside / "nothing.png")
    path = write(inside, "path\nx/a.png\n")
    leads = "leads out of" if kind in ("file", "folder") else "was not found"
    with pytest.raises(InputError, match=f'manifest.csv row 2: path "x/a.png" {leads}'):
        read_manifest(path)
    if kind in ("file", "folder"):
        assert len(read_manifest(path, allow_outside=True).table) == 1


def test_links_that_stay_inside_are_fine(tmp_path):
    path = write(tmp_path, "path\nlink/a.png\nb.png\n", ("real/a.png",))
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "b.png").symlink_to(tmp_path / "real" / "a.png")
    assert len(read_manifest(path).table) == 2
    (tmp_path / "door").symlink_to(tmp_path)
    assert len(read_manifest(tmp_path / "door" / "manifest.csv").table) == 2


def test_absolute_paths_with_allow_outside(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "a.png").write_bytes(b"")
    path = write(tmp_path / "set", f"path\n{tmp_path}/a.png\n../a.png\n")
    manifest = read_manifest(path, allow_outside=True)
    assert all((manifest.root / name).is_file() for name in manifest.table["path"])


def test_parquet_equals_csv(tmp_path):
    text = "path,label,patient,age,site\na.png,0,7,1.5,x\nb.png,,8,,y\nc.png,1,9,2.0,z\n"
    expected = read(tmp_path, text)
    frame = pd.DataFrame(
        {
            "path": ["a.png", "b.png", "c.png"],
            "label": [0.0, np.nan, 1.0],
            "patient": [7, 8, 9],
            "age": [1.5, None, 2.0],
            "site": pd.Categorical(["x", "y", "z"]),
        }
    )
    frame.set_index("patient").reset_index().to_parquet(tmp_path / "m.parquet")
    table = read_manifest(tmp_path / "m.parquet", check_files=False).table
    pd.testing.assert_frame_equal(table, expected.table)
    frame["label"] = [0, 1, 2]
    frame.to_parquet(tmp_path / "m.parquet")
    with pytest.raises(InputError, match='m.parquet row 4: label is "2"; allowed: 0, 1 or blank'):
        read_manifest(tmp_path / "m.parquet", check_files=False)
    (tmp_path / "m.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match="m.parquet: cannot be read as parquet: "):
        read_manifest(tmp_path / "m.parquet")


def test_folder_of_normal_and_abnormal(tmp_path):
    files = ("normal/b.PNG", "normal/deep/a.dcm", "normal/.DS_Store", "abnormal/c.jpeg")
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    manifest = read_manifest(tmp_path)
    assert manifest.table["path"].tolist() == [
        "normal/b.PNG",
        "normal/deep/a.dcm",
        "abnormal/c.jpeg",
    ]
    assert manifest.table["label"].tolist() == [0, 0, 1]
    assert manifest.where(2) == f'{tmp_path.name}, "abnormal/c.jpeg"'
    (tmp_path / "normal" / "notes.txt").write_bytes(b"")
    with pytest.warns(ManifestWarning, match=r'left out.*: 1 .txt \("normal/notes.txt"\)$'):
        assert len(read_manifest(tmp_path).table) == 3
    write(tmp_path, "path,label\nabnormal/c.jpeg,1\n")
    assert len(read_manifest(tmp_path).table) == 1


def test_a_linked_class_folder_is_refused(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a.png").write_bytes(b"")
    (tmp_path / "set" / "normal").symlink_to(tmp_path / "far")
    with pytest.raises(InputError, match='path "normal/a.png" leads out of'):
        read_manifest(tmp_path / "set")


@pytest.mark.parametrize(
    ("name", "message"),
    [("", "no manifest; allowed: manifest.csv"), ("no.csv", "no such file"), ("x.xlsx", "'.xlsx'")],
)
def test_sources_that_are_none(tmp_path, name, message):
    (tmp_path / "x.xlsx").write_bytes(b"")
    with pytest.raises(InputError, match=message):
        read_manifest(tmp_path / name)


def test_digest_is_of_content(tmp_path):
    text = "path,label,site\na.png,0,x\nb.png,,y\n"
    digest = read(tmp_path, text).digest
    assert len(bytes.fromhex(digest)) == hashlib.sha256().digest_size
    for same in (
        "label,site,path\n,y,b.png\n0.0,x,./a.png\n",
        "path,label,site,split\r\na.png,0,x,\r\nb.png,,y,\r\n",
    ):
        assert read(tmp_path, same).digest == digest
    for other in (
        text.replace(",0,", ",1,"),
        text.replace(",0,", ",,"),
        text.replace("x", "xy").replace(",,y", ",,"),
        text.replace("site", "ward"),
        text + "c.png,,\n",
    ):
        assert read(tmp_path, other).digest != digest


@pytest.mark.parametrize(
    "count", [50_000, pytest.param(1_000_000, marks=pytest.mark.slow)], ids=["50k", "1M"]
)
def test_a_million_rows_within_ten_seconds(tmp_path, count):
    rows = [
        f"p{i // 4}/s{i % 4}/image{i}.png,{i % 2},patient{i // 4},hand,note {i}"
        for i in range(count)
    ]
    header = "path,label,patient,body_part,note\n"
    path = write(tmp_path, header + "\n".join(rows) + "\n")
    seconds = []
    for _ in range(2):  # what else runs on the machine slows one of them
        start = time.process_time()
        manifest = read_manifest(path, check_files=False)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 10 * count / 1_000_000 + 0.5
    assert len(manifest.table) == count and manifest.table["path"].nunique() == count
    start = time.process_time()
    assert len(manifest.digest) == 64
    assert time.process_time() - start < 5 * count / 1_000_000 + 0.5
    message = refused(tmp_path, header + "\n".join(rows)[:-1] + ",2\n")
    assert message == f"manifest.csv row {count + 1}: 6 cells; the header has 5"


def test_existence_is_checked_by_listing_folders(tmp_path, monkeypatch):
    """800 files in 8 folders: a look at each folder, none at each file."""
    names = [f"f{i % 8}/{i}.png" for i in range(800)]
    path = write(tmp_path, "path\n" + "\n".join(names) + "\n", tuple(names))
    looked = []
    for function in ("isfile", "exists", "realpath"):
        real = getattr(__import__("os").path, function)

        def counted(value, *rest, real=real, **more):
            looked.append(value)
            return real(value, *rest, **more)

        monkeypatch.setattr(f"os.path.{function}", counted)
    read_manifest(path)
    assert len(looked) < 20
    (tmp_path / names[567]).unlink()
    with pytest.raises(InputError, match=f'manifest.csv row 569: path "{names[567]}" was not'):
        read_manifest(path)


def test_a_file_name_that_is_not_utf8_is_named(tmp_path, capsys):
    films = tmp_path / "films"
    films.mkdir()
    name = b"bild\xfc5.png"
    with open(os.fsencode(films) + b"/" + name, "wb") as handle:
        handle.write(b"x")
    for words in (["prepare", str(films)], ["score", "m", "--data.manifest", str(films)]):
        assert main([*words, "--out", str(tmp_path / "out.csv")]) == 2
        said = capsys.readouterr().err
        assert '"bild\\udcfc5.png"; allowed: a name in UTF-8 (rename the file)' in said
