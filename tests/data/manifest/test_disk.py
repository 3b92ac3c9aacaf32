"""Names that a list and the disk spell otherwise, and one file under two names."""

import unicodedata
import warnings

import cv2
import numpy as np
import pytest

from selftaught.data.manifest import read_manifest
from selftaught.data.manifest.spelling import ManifestWarning
from selftaught.data.prepare import published
from selftaught.data.prepare.config import PrepareConfig
from selftaught.data.prepare.job import prepare
from selftaught.errors import InputError

PLACES = [
    "Kn\u00f6chel.png",
    "Bj\u00f6rn/a.png",
    "\u00c5sa/r\u00f6ntgen/f\u00fc\u00df.png",
    "\u1ebf/\u1ed9.png",  # two marks on a letter
    "\ud55c\uae00.png",  # Hangul syllables are three letters in NFD
    "\u304c\u304e.png",
    "\u03ac.png",
]
FORMS = ["NFC", "NFD"]


def film(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = np.random.default_rng(seed).integers(0, 256, (40, 30)).astype(np.uint8)
    path.write_bytes(cv2.imencode(".png", grey)[1].tobytes())


@pytest.mark.parametrize("check_files", [True, False])
@pytest.mark.parametrize("column", ["path", "mask"])
@pytest.mark.parametrize("disk", FORMS)
@pytest.mark.parametrize("place", PLACES)
def test_a_path_has_the_spelling_of_the_disk(tmp_path, place, disk, column, check_files):
    there = unicodedata.normalize(disk, place)
    listed = unicodedata.normalize(FORMS[disk == "NFC"], place)
    assert there != listed
    film(tmp_path / there)
    film(tmp_path / "plain.png")
    other = "mask" if column == "path" else "path"
    (tmp_path / "m.csv").write_text(f"{column},{other}\n{listed},plain.png\n", encoding="utf-8")
    table = read_manifest(tmp_path / "m.csv", check_files=check_files).table
    assert table[column].tolist() == [there] and table[other].tolist() == ["plain.png"]


def test_two_files_whose_names_look_alike_stay_two(tmp_path):
    both = [unicodedata.normalize(form, "\u00f6.png") for form in FORMS]
    for seed, name in enumerate(both):
        film(tmp_path / name, seed)
    (tmp_path / "m.csv").write_text("path\n" + "\n".join(both) + "\n", encoding="utf-8")
    assert read_manifest(tmp_path / "m.csv").table["path"].tolist() == both


@pytest.mark.parametrize("disk", FORMS)
def test_one_file_listed_in_both_spellings_is_listed_twice(tmp_path, disk):
    both = [unicodedata.normalize(form, "\u00f6.png") for form in FORMS]
    film(tmp_path / unicodedata.normalize(disk, "\u00f6.png"))
    (tmp_path / "m.csv").write_text("path\n" + "\n".join(both) + "\n", encoding="utf-8")
    for check_files in (True, False):
        with pytest.raises(InputError, match=r"m.csv row 3: path .* was already given in m.csv ro"):
            read_manifest(tmp_path / "m.csv", check_files=check_files)


def test_a_list_of_another_system_can_be_prepared(tmp_path):
    film(tmp_path / "raw" / "K\u00f6hler.png")
    listed = unicodedata.normalize("NFD", "K\u00f6hler.png")
    (tmp_path / "raw" / "manifest.csv").write_text(f"path\n{listed}\n", encoding="utf-8")
    plain = PrepareConfig(carrier="none", polarity="none", mask="none", workers=1, sheets=0)
    summary = prepare(tmp_path / "raw", tmp_path / "set", plain)
    assert (summary.images, summary.refused) == (1, 0)
    table = read_manifest(tmp_path / "set").table
    assert table["source"].tolist() == ["K\u00f6hler.png"]


@pytest.mark.parametrize("cell", ["hand", "Hand", " HAND", "hand\u00a0", "Hand\u200b"])
def test_the_published_rule_knows_a_body_part_however_it_is_written(tmp_path, monkeypatch, cell):
    film(tmp_path / "raw" / "a.png")
    (tmp_path / "raw" / "manifest.csv").write_text(f"path,body_part\na.png,{cell}\n", "utf-8")
    parts = []
    monkeypatch.setattr(published, "find_carrier", lambda grey, part: parts.append(part))
    plain = PrepareConfig(carrier="paper", polarity="none", mask="none", workers=1, sheets=0)
    prepare(tmp_path / "raw", tmp_path / "set", plain)
    assert parts == ["hand"]


@pytest.mark.parametrize(
    ("listed", "there"),
    [
        ("a.png", "a.PNG"),
        ("hand/A.png", "hand/a.png"),
        ("a.png ", "a.png"),
        ("a .png", "a\u00a0.png"),
        ("a\u200b.png", "a.png"),
        ("ａ.png", "a.png"),
    ],
)
def test_a_name_that_is_nearly_there_is_shown(tmp_path, listed, there):
    film(tmp_path / there)
    (tmp_path / "m.csv").write_text(f"path\n{listed}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"m.csv row 2: path .* was not found; the disk has \""):
        read_manifest(tmp_path / "m.csv")


@pytest.mark.parametrize("kind", ["file", "folder", "chain"])
def test_one_file_under_two_names_is_named(tmp_path, kind):
    film(tmp_path / "real" / "a.png")
    film(tmp_path / "real" / "b.png", 1)
    if kind == "folder":
        (tmp_path / "link").symlink_to("real")
    else:
        (tmp_path / "link").mkdir()
        (tmp_path / "link" / "a.png").symlink_to("../real/a.png" if kind == "file" else "x.png")
        if kind == "chain":
            (tmp_path / "link" / "x.png").symlink_to(tmp_path / "real" / "a.png")
    (tmp_path / "m.csv").write_text("path\nreal/a.png\nreal/b.png\nlink/a.png\n")
    with pytest.warns(ManifestWarning) as caught:
        assert len(read_manifest(tmp_path / "m.csv").table) == 3
    assert [str(one.message) for one in caught] == [
        'm.csv row 4: path "link/a.png" is the file of m.csv row 2, "real/a.png", under another '
        "name; each counts as an image of its own"
    ]
    (tmp_path / "m.csv").write_text("path\nreal/b.png\nlink/a.png\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_manifest(tmp_path / "m.csv")


def test_a_link_to_nothing_is_no_name_spelled_otherwise(tmp_path):
    (tmp_path / "a.png").symlink_to("gone.png")
    (tmp_path / "m.csv").write_text("path\na.png\n")
    with pytest.raises(InputError, match='path "a.png" was not found; it is a link to nothing$'):
        read_manifest(tmp_path / "m.csv")
