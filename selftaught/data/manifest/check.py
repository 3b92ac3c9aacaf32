"""What a manifest's cells may hold, and one clear line for the first that does not."""

import difflib
import re
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from selftaught.errors import InputError
from selftaught.semi_labels import KNOWN_ABNORMAL, KNOWN_NORMAL, UNKNOWN

Where = Callable[[int], str]

COLUMNS = ("path", "label", "patient", "study", "body_part", "mask", "split", "semi_label")
LABELS = {"": -9, "0": 0, "1": 1, "0.0": 0, "1.0": 1}
SEMI_LABELS = {"": -9, "-1": -1, "0": 0, "1": 1, "+1": 1, "-1.0": -1, "0.0": 0, "1.0": 1}
SETS = ("train", "val", "test", "unused")
ALLOWED = {"label": "0, 1 or blank", "semi_label": "-1, 0, 1 or blank"}

SHOWN = 80
# Supersets of what is wrong, so that a million ordinary paths cost a few searches in one text.
SUSPECT_TEXTS = ("\\", ":", "//", "/.", "/\n", "\n.", "\n/", "\n\n")
SUSPECT = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff\\:]|^/|(?:^|/)\.{0,2}(?:/|$)")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://|^(?:file|data|https?|ftp):|^//", re.IGNORECASE)
DRIVE = re.compile(r"^[A-Za-z]:")


def show(value: str) -> str:
    """Quote a cell for a message: one line, at most 80 characters, nothing unprintable."""
    short = value if len(value) <= SHOWN else value[: SHOWN - 3] + "..."
    safe = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in short)
    return f'"{safe}"'


def near_name(column: str, names: Iterable[str]) -> str:
    """A hint at a column that may be the misspelt `column`; "" where none is like it."""
    others = {name.lower(): name for name in names if name not in COLUMNS}
    near = difflib.get_close_matches(column, others, n=1)
    return f"; did you mean {show(others[near[0]])} to be {show(column)}?" if near else ""


def coded(cells: list[str], column: str, codes: dict[str, int], where: Where) -> pd.Series:
    """Translate cells to numbers.

    Args:
        cells: N cells.
        column: `label` or `semi_label`, for the message.
        codes: number by text; -9 stands for blank.
        where: names a row.

    Returns:
        (N,) Int8 series, NA where blank.

    Raises:
        InputError: a cell is not among `codes`; names the first such row.
    """
    numbers = np.array([codes.get(cell, 99) for cell in cells], np.int8)
    if (numbers == 99).any():
        index = int((numbers == 99).argmax())
        raise InputError(
            f"{where(index)}: {column} is {show(cells[index])}; allowed: {ALLOWED[column]}"
        )
    return pd.Series(pd.array(numbers, "Int8")).mask(numbers == -9)


def split_names(cells: list[str], where: Where, *, blank: bool = True) -> None:
    """Refuse a split that is not train, val, test, unused or, where `blank` allows it, blank.

    Raises:
        InputError: names the first such row.
    """
    allowed = {"", *SETS} if blank else set(SETS)
    if set(cells) <= allowed:
        return
    for index, cell in enumerate(cells):
        if cell not in allowed:
            raise InputError(
                f"{where(index)}: split is {show(cell)}; allowed: {', '.join(SETS)}"
                f"{' or blank' if blank else ''}"
            )


def consistent(label: pd.Series, semi_label: pd.Series, where: Where) -> None:
    """Refuse a known image whose label is blank or says the opposite.

    Raises:
        InputError: names the first such row.
    """
    truth = label.fillna(-9).to_numpy(np.int8)
    known = semi_label.fillna(UNKNOWN).to_numpy(np.int8)
    wrong = ((known == KNOWN_NORMAL) & (truth != 0)) | ((known == KNOWN_ABNORMAL) & (truth != 1))
    if wrong.any():
        index = int(wrong.argmax())
        given = "blank" if truth[index] < 0 else str(truth[index])
        raise InputError(
            f"{where(index)}: semi_label is {known[index]} but label is {given}; allowed: 1 with "
            "label 0 (known normal), -1 with label 1 (known abnormal), 0 with any label"
        )


def clean_paths(cells: list[str], column: str, allow_outside: bool, where: Where) -> list[str]:
    """Drop `.` and empty steps from paths and refuse those that leave the manifest's folder.

    Raises:
        InputError: a `path` is blank; a path has a control character, a backslash, a drive or an
            URL scheme; or, unless `allow_outside`, is absolute or has a `..` step.
    """
    if column == "mask":
        cells = ["" if cell.isspace() else cell for cell in cells]
    text = "\n".join(("", *cells, ""))
    if not any(cells) and column == "mask":
        return cells
    one_line_each = text.count("\n") == len(cells) + 1
    if one_line_each and text.replace("\n", "").isprintable():
        if not any(part in text for part in SUSPECT_TEXTS):
            return cells
    cleaned = list(cells)
    for index, cell in enumerate(cells):
        if SUSPECT.search(cell) is None or (column == "mask" and cell == ""):
            continue
        reason = _path_fault(cell, allow_outside)
        if reason:
            raise InputError(f"{where(index)}: {column} is {show(cell)}; {reason}")
        steps = [step for step in cell.split("/") if step not in ("", ".")]
        cleaned[index] = ("/" if cell.startswith("/") else "") + "/".join(steps)
    return cleaned


def _path_fault(path: str, allow_outside: bool) -> str:
    inside = "allowed: a path below the manifest's folder"
    if not path.strip("./"):
        return "allowed: the path of a file"
    if any("\ud800" <= c <= "\udfff" for c in path):
        return "allowed: a name in UTF-8 (rename the file)"
    if CONTROL.search(path):
        return "allowed: a path without control characters"
    if "\\" in path or DRIVE.match(path):
        return f"{inside}, written with / and without a drive"
    if URL.match(path):
        return f"{inside}, not an address"
    if not allow_outside and (path.startswith("/") or ".." in path.split("/")):
        return f"{inside} (or --allow-outside)"
    return ""


def unique_paths(paths: list[str], where: Where) -> None:
    """Refuse an image that is listed twice.

    Raises:
        InputError: names both rows.
    """
    if len(set(paths)) == len(paths):
        return
    first: dict[str, int] = {}
    for index, path in enumerate(paths):
        if path in first:
            raise InputError(
                f"{where(index)}: path {show(path)} was already given in {where(first[path])}; "
                "allowed: each image once"
            )
        first[path] = index
