"""A split as a file and as the table of counts that is printed before training."""

import csv
import io
from pathlib import Path

import numpy as np
import pandas as pd

from selftaught.data.manifest import check
from selftaught.data.manifest.read import csv_columns
from selftaught.errors import InputError
from selftaught.files import write_atomic
from selftaught.semi_labels import KNOWN_ABNORMAL, KNOWN_NORMAL, UNKNOWN

FIRST = ("path", "split", "semi_label", "label", "group")


def split_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Count a split.

    Args:
        frame: what `make_split` returns.

    Returns:
        One row for train, val, test, unused and all; int64 columns `images`, `groups`, `normal`,
        `abnormal`, `unlabelled` (by label), `known_normal`, `known_abnormal`, `unknown` (by
        semi_label).
    """
    label = frame["label"].fillna(-1).to_numpy(np.int8)
    semi = frame["semi_label"].to_numpy(np.int8)
    group = pd.factorize(frame["group"])[0]
    rows = {}
    for name in (*check.SETS, "all"):
        here = np.ones(len(frame), bool) if name == "all" else (frame["split"] == name).to_numpy()
        rows[name] = {
            "images": here.sum(),
            "groups": len(np.unique(group[here])),
            "normal": (label[here] == 0).sum(),
            "abnormal": (label[here] == 1).sum(),
            "unlabelled": (label[here] < 0).sum(),
            "known_normal": (semi[here] == KNOWN_NORMAL).sum(),
            "known_abnormal": (semi[here] == KNOWN_ABNORMAL).sum(),
            "unknown": (semi[here] == UNKNOWN).sum(),
        }
    return pd.DataFrame.from_dict(rows, orient="index").astype(np.int64).rename_axis("split")


def format_table(frame: pd.DataFrame) -> str:
    """The counts of `split_table(frame)` as aligned lines of text, without a final newline."""
    table = split_table(frame)
    header = ["split", *(name.replace("_", " ") for name in table.columns)]
    lines = [header] + [[str(name), *map(str, row)] for name, row in table.T.items()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def write_split(frame: pd.DataFrame, path: Path) -> None:
    """Write a split as CSV, complete or not at all; `read_split` gives the same frame back.

    Args:
        frame: what `make_split` returns; path, split, semi_label, label and group go first.
        path: the file; its folder must exist.

    Raises:
        MachineError: the disk is full or the folder cannot be written.
    """
    columns = [*FIRST, *(column for column in frame.columns if column not in FIRST)]
    cells = [frame[name].astype(object).where(frame[name].notna(), "") for name in columns]
    # The csv module leaves a lone carriage return unquoted, yet reads it as the end of a row.
    returns = any("\r" in str(cell) for column in cells for cell in column)
    text = io.StringIO(newline="")
    writer = csv.writer(
        text, lineterminator="\n", quoting=csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL
    )
    writer.writerow(columns)
    writer.writerows(zip(*cells, strict=True))
    write_atomic(Path(path), text.getvalue().encode())


def read_split(path: Path) -> pd.DataFrame:
    """Read a file of `write_split` and check its columns.

    Returns:
        Columns path, split, semi_label (int8), label (Int8), group, then the file's others as text.

    Raises:
        InputError: the file is missing or damaged, or a cell is not allowed; names the row.
    """
    path = Path(path)
    cells, rows = csv_columns(path)
    header = [column.pop(0) for column in cells]
    for name in FIRST:
        if header.count(name) != 1:
            raise InputError(f"{path.name} row 1: needs the column {check.show(name)} once")
    columns = dict(zip(header, cells, strict=True))

    def where(index: int) -> str:
        return f"{path.name} row {rows[index + 1]}"

    check.unique_paths(columns["path"], where)
    check.split_names(columns["split"], where, blank=False)
    label = check.coded(columns["label"], "label", check.LABELS, where)
    known = {text: code for text, code in check.SEMI_LABELS.items() if text}
    semi_label = check.coded(columns["semi_label"], "semi_label", known, where)
    check.consistent(label, semi_label, where)
    frame = pd.DataFrame({name: pd.Series(columns[name], dtype="str") for name in columns})
    frame = frame.assign(semi_label=semi_label.astype(np.int8), label=label)
    return frame[[*FIRST, *(name for name in header if name not in FIRST)]]
