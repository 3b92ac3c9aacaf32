"""One name for one person, however a table writes it: in every reader, split, leak and figure."""

import warnings
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from selftaught.data.manifest import Manifest, read_manifest
from selftaught.data.manifest.spelling import ManifestWarning, cleaned, identity, one_spelling
from selftaught.data.split import SplitConfig, SplitWarning, make_split
from selftaught.data.split.leakage import find_leakage
from selftaught.errors import InputError
from selftaught.evaluation.metrics import evaluate

# Alike to any reader: joined in silence.
UNSEEN = {
    "no-break space": ("p1", "p1\u00a0"),
    "ideographic space": ("p1", "\u3000p1"),
    "tab": ("p1", "\tp1"),
    "line end": ("p1", "p1\r\n"),
    "two blanks": ("Ann Lee", "Ann  Lee"),
    "narrow blank": ("Ann Lee", "Ann\u202fLee"),
    "zero-width space": ("p1", "p\u200b1"),
    "byte order mark": ("p1", "\ufeffp1"),
    "soft hyphen": ("p1", "p\u00ad1"),
    "right-to-left mark": ("p1", "p1\u200f"),
    "escape": ("p1", "p1\x1b"),
    "Hangul filler": ("p1", "p1\u3164"),
    "form of an ideograph": ("葛\ufe00", "葛\U000e0101"),
    "composed": ("K\u00f6hler", "Ko\u0308hler"),
    "composed through": ("K\u00f6hler", "Ko\u200b\u0308hler"),
}
# Written otherwise: joined, and the reader is told which.
WRITTEN = {
    "case": ("P01", "p01"),
    "sharp s": ("STRASSE", "Straße"),
    "full-width letters": ("p1", "ｐ１"),
    "full-width digits": ("12", "１２"),
    "en dash": ("p-1", "p–1"),
    "minus": ("p-1", "p−1"),
    "no-break hyphen": ("p-1", "p\u20111"),
    "apostrophe": ("O'Neil", "O’Neil"),
    "accent for an apostrophe": ("O'Neil", "O´Neil"),
    "grave accent for an apostrophe": ("O'Neil", "O`Neil"),
    "small dash": ("p-1", "p\ufe581"),
    "leading zeros": ("7", "007"),
    "float": ("12", "12.0"),
    "float with more digits": ("12", "12.000"),
    "decimal comma": ("12", "12,0"),
    "sign": ("7", "+7"),
    "exponent": ("1230000000000", "1.23e+12"),
    "spreadsheet exponent": ("1230000000000", "1.23E+12"),
    "Arabic digits": ("12", "١٢"),
}
APART = [
    ("p1", "p2"),
    ("7", "70"),
    ("7", "-7"),
    ("1.1", "1.10"),
    ("7.5", "7"),
    ("P01", "P1"),
    ("12e4", "120000"),
    ("1,234", "1234"),
    ("p1", "p 1"),
    ("p1", "p_1"),
    ("NA", ""),
    ("0", ""),
]
EMPTY = ["", " ", "\u00a0", "\u200b", "NaN", "nan", "<NA>", "None", "NULL", "NaT", "N/A", "#N/A"]
ALIKE = [*UNSEEN.values(), *WRITTEN.values()]
NAMES = [*UNSEEN, *WRITTEN]


@pytest.mark.parametrize("pair", ALIKE, ids=NAMES)
def test_one_name(pair):
    assert identity(pair[0]) == identity(pair[1]) != ""
    assert (cleaned(pair[0]) == cleaned(pair[1])) == (pair in UNSEEN.values())


@pytest.mark.parametrize("pair", APART)
def test_two_names(pair):
    assert identity(pair[0]) != identity(pair[1])


@pytest.mark.parametrize("cell", EMPTY)
def test_no_name(cell):
    assert cleaned(cell) == identity(cell) == ""


@pytest.mark.parametrize(
    "cell", ["p1", "007", "7.0", "Ko\u0308hler", "ｐ１", "1.2e+3", "A&E (2)", " p1"]
)
def test_a_name_that_has_no_other_spelling_stays(cell):
    """What a group is called decides its draw: tables that were read rightly keep theirs."""
    assert one_spelling([cell, "other"], "patient", "m") == [cell, "other"]


def write(folder: Path, kind: str, columns: dict[str, list[str]]) -> Path:
    path = folder / f"m.{kind}"
    frame = pd.DataFrame(columns)
    frame.to_parquet(path) if kind == "parquet" else frame.to_csv(path, index=False)
    return path


def quiet(path: Path) -> Manifest:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ManifestWarning)
        return read_manifest(path, check_files=False)


def read(path: Path) -> pd.DataFrame:
    return quiet(path).table


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("column", ["patient", "study", "body_part"])
def test_every_reader_gives_one_spelling(tmp_path, kind, column):
    cells = [cell for pair in ALIKE for cell in pair]
    paths = [f"{number}.png" for number in range(len(cells))]
    table = read(write(tmp_path, kind, {"path": paths, column: cells}))
    names = dict(zip(cells, table[column], strict=True))
    assert all(names[first] == names[second] != "" for first, second in ALIKE)
    assert len(set(table[column])) == len({identity(cell) for cell in cells})


@pytest.mark.parametrize("pair", WRITTEN.values(), ids=WRITTEN)
def test_what_is_joined_is_named_in_one_line(tmp_path, pair):
    path = write(tmp_path, "csv", {"path": ["a", "b", "c"], "patient": [*pair, "z"]})
    with pytest.warns(ManifestWarning) as caught:
        read_manifest(path, check_files=False)
    (line,) = {str(one.message) for one in caught}
    assert line.startswith("m.csv: patient ") and line.count('"') == 4
    assert "count as one; allowed: other names where they are two" in line


@pytest.mark.parametrize(
    ("kind", "cells"),
    [
        ("csv", ["1.23457E+11", "p2", "1.23457E+11"]),
        ("csv", [" 1.2e+3", "p2", "p3"]),
        ("parquet", [12345678901234567.0, 2.0, 12345678901234568.0]),
    ],
)
def test_a_rounded_number_is_named(tmp_path, kind, cells):
    """Of twelve digits a spreadsheet saves six: all who share them would be one, in silence."""
    path = write(tmp_path, kind, {"path": ["a", "b", "c"], "patient": cells})
    with pytest.warns(ManifestWarning) as caught:
        read_manifest(path, check_files=False)
    (line,) = {str(one.message) for one in caught}
    assert "may stand for several" in line and "1 such names; allowed" in line


def test_blanks_are_joined_in_silence(tmp_path):
    cells = [cell for pair in UNSEEN.values() for cell in pair]
    path = write(tmp_path, "csv", {"path": list(map(str, range(len(cells)))), "patient": cells})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_manifest(path, check_files=False)


TYPED = {
    # As float64, 2**53 + 1 is 2**53: two patients would be one.
    "whole numbers beside a gap": (
        pa.array([2**53, 2**53 + 1, None]),
        ["9007199254740992", "9007199254740993", ""],
    ),
    "unsigned": (pa.array([7, 2**64 - 1, None], pa.uint64()), ["7", "18446744073709551615", ""]),
    "floats": (pa.array([7.0, float("nan"), None]), ["7.0", "", ""]),
    "floats and text": (pa.array(["7", "7.0", "07"]), ["7", "7", "7"]),
    "dictionary of numbers": (pa.array([7, 8, None]).dictionary_encode(), ["7", "8", ""]),
    "dictionary of text": (pa.array(["p1", "p1 ", None]).dictionary_encode(), ["p1", "p1", ""]),
    "bytes": (pa.array([b"p1", b"p1 ", None]), ["p1", "p1", ""]),
    "bytes that are no text": (pa.array([b"\xff\x01", b"\xff\x02", None]), ["ff01", "ff02", ""]),
    "decimals": (pa.array([Decimal("7.00"), Decimal("7.50"), None]), ["7.00", "7.50", ""]),
    "large text": (pa.array(["p1", "p1\u00a0", None], pa.large_string()), ["p1", "p1", ""]),
    "nothing": (pa.nulls(3), ["", "", ""]),
}


@pytest.mark.parametrize("name", TYPED)
def test_every_type_of_a_parquet_column(tmp_path, name):
    column, expected = TYPED[name]
    table = pa.table({"path": ["a", "b", "c"], "patient": column, "label": [0, 1, None]})
    pyarrow.parquet.write_table(table, tmp_path / "m.parquet")
    frame = read(tmp_path / "m.parquet")
    assert frame["patient"].tolist() == expected
    assert frame["label"].fillna(-1).tolist() == [0, 1, -1]


FORMS = {
    "blank": "{} ",
    "no-break space": "\u00a0{}",
    "zero-width": "\u200b{}",
    "float": "{}.0",
    "zeros": "00{}",
    "full width": "\uff11{}",
}


def clinic(folder: Path, kind: str, form: str, **columns: list[str]) -> Path:
    """Forty patients with two films each; the second film writes the patient otherwise."""
    patients = [f"1{number:02d}" for number in range(40)]
    cells = {
        "path": [f"{patient}_{film}.png" for patient in patients for film in "ab"],
        "label": [str(int(number % 4 == 0)) for number in range(40) for _ in "ab"],
        "patient": [
            cell for one in patients for cell in (one, form.format(one[form[0] == "\uff11" :]))
        ],
    }
    return write(folder, kind, cells | columns)


@pytest.mark.parametrize("group", ["patient", "person"])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_both_films_of_a_patient_are_in_one_set(tmp_path, form, kind, group):
    path = clinic(tmp_path, kind, form)
    if group == "person":
        frame = pd.read_parquet(path) if kind == "parquet" else pd.read_csv(path, dtype=str)
        write(tmp_path, kind, dict(frame.rename(columns={"patient": group})))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        frame = make_split(quiet(path), SplitConfig(group=group))
    films = frame.assign(number=frame["path"].str[:3]).groupby("number")
    assert (films["group"].nunique() == 1).all() and (films["split"].nunique() == 1).all()
    assert set(frame["split"]) >= {"train", "val", "test"}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_patient_in_two_given_sets_is_refused(tmp_path, form):
    sets = ["train"] * 40 + ["val"] * 20 + ["test"] * 20
    sets[1] = "test"
    path = clinic(tmp_path, "csv", form, split=sets)
    manifest = quiet(path)
    with pytest.raises(InputError, match=r"m.csv row 3: group .* in test here and in train in .*2"):
        make_split(manifest, SplitConfig())


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_leak_is_counted_where_another_column_decides(tmp_path, form):
    """Each film is a group of its own, so that patients cross: as many as with one spelling."""
    crossing = []
    for number, one in enumerate((form, "{}")):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = clinic(folder, "csv", one, film=[str(film) for film in range(80)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SplitWarning)
            frame = make_split(quiet(path), SplitConfig(group="film"))
        leaks = find_leakage(frame, np.zeros((80, 32), np.uint8), np.zeros(80, bool))
        crossing.append((leaks.facts["patients"]["crossing"], leaks.excess.sum()))
    assert crossing[0] == crossing[1] and crossing[0][0] > 5


def test_the_order_of_rows_does_not_choose_the_spelling(tmp_path):
    cells = ["p01", "P01", "P01 ", "7.0", "07", "7"]
    for order in (slice(None), slice(None, None, -1)):
        path = write(tmp_path, "csv", {"path": list("abcdef")[order], "patient": cells[order]})
        assert read(path)["patient"].tolist() == ["P01", "P01", "P01", "7", "7", "7"][order]


@pytest.mark.parametrize(
    "column", ["patient\u200b", "ｐatient", "\u00a0Patient", "LABEL ", "path "]
)
def test_a_column_whose_name_only_looks_right_is_refused(tmp_path, column):
    (tmp_path / "m.csv").write_text(f"path,{column}\na.png,1\n", encoding="utf-8")
    with pytest.raises(InputError, match="row 1: column .*; write it as"):
        read(tmp_path / "m.csv")


FORMS_OF_NUMBERS = ("{}", "{}.0", " {}", "0{}")
FORMS_OF_TEXT = ("{}", "{} ", "\u200b{}", "\u00a0{}")


def test_figures_do_not_depend_on_spelling():
    generator = np.random.default_rng(0)
    plain = pd.DataFrame(
        {
            "path": [f"{number}.png" for number in range(80)],
            "split": "test",
            "label": np.arange(80) % 2,
            "score": generator.random(80),
            "group": [str(number // 4) for number in range(80)],
            "study": [f"s{number // 4}" for number in range(80)],
            "body_part": ["hand", "wrist"] * 40,
        }
    )
    other = plain.assign(
        split=["test", "TEST ", "Test", "\u00a0test"] * 20,
        group=[form.format(number) for number in range(20) for form in FORMS_OF_NUMBERS],
        study=[form.format(f"s{number}") for number in range(20) for form in FORMS_OF_TEXT],
        body_part=["hand", "wrist", "Hand ", "WRIST\u200b"] * 20,
    )
    with pytest.warns(ManifestWarning, match="count as one"):
        figures = evaluate(other, seed=1, resamples=50)
    expected = evaluate(plain, seed=1, resamples=50)
    parts = figures["test"].pop("body_parts"), expected["test"].pop("body_parts")
    assert [parts[0][name]["n"] for name in ("Hand", "WRIST")] == [40, 40] and len(parts[0]) == 2
    assert figures["test"]["groups"] == 20 and figures["test"]["studies"]["n"] == 40
    assert figures == expected
