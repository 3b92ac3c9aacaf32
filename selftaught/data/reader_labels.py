"""Labels that readers give on the page: a CSV row for each, appended and never rewritten.

The last row of a path counts. Undoing appends a row, too: what the film had before, or a blank.
"""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from selftaught.data.manifest.check import show
from selftaught.data.manifest.read import csv_columns
from selftaught.errors import InputError
from selftaught.files import fsync_folder, hold, machine_errors
from selftaught.semi_labels import KNOWN_ABNORMAL, KNOWN_NORMAL, UNKNOWN

COLUMNS = ("path", "label", "who", "when", "score", "model", "undo")
LABELS = ("normal", "abnormal", "unsure")
CODES = {"normal": 0, "abnormal": 1, "unsure": pd.NA}
SEMI = {"normal": KNOWN_NORMAL, "abnormal": KNOWN_ABNORMAL, "unsure": UNKNOWN}


class Row(NamedTuple):
    """What a reader did.

    Attributes:
        path: of the film, as in the manifest or scores.csv.
        label: normal, abnormal, unsure (= unknown, whatever was given), or "" (= as given).
        who: the reader.
        when: in UTC.
        score: whether it was shown or hidden.
        model: SHA-256 of the model's model.json.
        undo: "1" where the row takes the reader's label before back.
    """

    path: str
    label: str
    who: str
    when: str
    score: str
    model: str
    undo: str = ""


def read_rows(path: Path) -> list[Row]:
    """The rows of a labels file, in order; only `path` and `label` have to be there.

    Raises:
        InputError: it is missing, no CSV, or a label is not one; names the row.
    """
    cells, numbers = csv_columns(path)
    header = [column.pop(0) for column in cells]
    for name in COLUMNS[:2]:
        if header.count(name) != 1:
            raise InputError(f"{path.name} row 1: needs the column {show(name)} once")
    columns = dict(zip(header, cells, strict=True))
    blank = [""] * len(cells[0])
    rows = list(map(Row, *(columns.get(name, blank) for name in COLUMNS)))
    for row, number in zip(rows, numbers[1:], strict=True):
        if row.label not in ("", *LABELS):
            raise InputError(
                f"{path.name} row {number}: label is {show(row.label)}; allowed: "
                f"{', '.join(LABELS)}, or blank where a label was undone"
            )
    return rows


def current(rows: Sequence[Row]) -> dict[str, str]:
    """What each path is labelled now: normal, abnormal or unsure."""
    last = {row.path: row.label for row in rows}
    return {path: label for path, label in last.items() if label}


class LabelFile:
    """A labels file that this process appends to; no other may meanwhile.

    Attributes:
        path: the file.
        rows: all that it holds.
        cut: whether a row that a crash had left unfinished was cut off.
    """

    def __init__(self, path: Path) -> None:
        """Open or begin the file.

        Raises:
            InputError: it is no labels file, or another process appends to it.
            MachineError: it cannot be written.
        """
        self.path, self.cut = path, False
        if not path.parent.is_dir():
            raise InputError(f"labels is {str(path)!r}: there is no folder {path.parent}")
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        with machine_errors(path):
            self._handle = os.open(path, flags, 0o666)
        try:
            self._take_up()
        except BaseException:
            os.close(self._handle)
            raise

    def _take_up(self) -> None:
        taken = f"{self.path}: another selftaught look appends to it; allowed: another --labels"
        hold(self._handle, self.path, taken)
        content = self.path.read_bytes()
        if not content:
            self._write(",".join(COLUMNS) + "\n")
            fsync_folder(self.path.parent)
            self.rows: list[Row] = []
            return
        header = content.split(b"\n", 1)[0].decode("utf-8", "replace").strip()
        if header != ",".join(COLUMNS):
            raise InputError(
                f"{self.path}: exists and is no labels file of this command; allowed: a new file, "
                f"or one that begins with {','.join(COLUMNS)}"
            )
        whole, _, tail = content.rpartition(b"\n")
        if tail and len(next(csv.reader([tail.decode("utf-8", "replace")]))) == len(COLUMNS):
            self._write("\n")
        elif tail:
            # Of a row that was written in one piece a crash may leave a part: nobody was told that
            # it is kept.
            os.ftruncate(self._handle, len(whole) + 1)
            os.fsync(self._handle)
            self.cut = True
        self.rows = read_rows(self.path)

    def _write(self, text: str) -> None:
        """Append durably, or not at all."""
        data, size = text.encode(), os.fstat(self._handle).st_size
        with machine_errors(self.path, len(data)):
            try:
                while data:
                    data = data[os.write(self._handle, data) :]
                os.fsync(self._handle)
            except OSError:
                os.ftruncate(self._handle, size)
                raise

    def append(
        self, path: str, label: str, *, who: str, hidden: bool, model: str, undo: bool = False
    ) -> None:
        """Add a row; when this returns it is on the disk.

        Raises:
            MachineError: it is not, and the file is as before.
        """
        when = datetime.now(timezone.utc).isoformat(timespec="seconds")
        shown = "hidden" if hidden else "shown"
        row = Row(path, label, who, when, shown, model, "1" if undo else "")
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(row)
        self._write(text.getvalue())
        self.rows.append(row)

    def before(self, who: str) -> tuple[str, str] | None:
        """What this reader's next undo is about: path, and its label before ("" = as given).

        None where nothing of this reader's is left to undo.
        """
        done: list[tuple[str, str]] = []
        now: dict[str, str] = {}
        for row in self.rows:
            if row.who == who and row.undo:
                del done[-1:]
            elif row.who == who:
                done.append((row.path, now.get(row.path, "")))
            now[row.path] = row.label
        return done[-1] if done else None

    def close(self) -> None:
        """Let others append."""
        os.close(self._handle)


def with_labels(
    table: pd.DataFrame, labels: Mapping[str, str], name: str
) -> tuple[pd.DataFrame, np.ndarray]:
    """A table of images with readers' labels in its column `label`.

    Args:
        table: columns `path` and `label`; of a prepared set also `source`, the raw film's path.
        labels: by path of the image or of its source.
        name: of the file, for messages.

    Returns:
        The table, and the positions (M,) of the images that readers labelled.

    Raises:
        InputError: a path is not in the table.
    """
    places = {path: row for row, path in enumerate(table["path"])}
    if "source" in table:
        places = {path: row for row, path in enumerate(table["source"])} | places
    if missing := [path for path in labels if path not in places]:
        raise InputError(
            f"data.labels: {name} labels {show(missing[0])}, which data.manifest does not list "
            f"({len(missing)} of {len(labels)} such paths); allowed: labels of its images"
        )
    rows = np.array([places[path] for path in labels], np.int64)
    codes = table["label"].astype("Int8").copy()
    codes.iloc[rows] = pd.array([CODES[label] for label in labels.values()], "Int8")
    return table.assign(label=codes), rows


def into_split(
    frame: pd.DataFrame, labels: Mapping[str, str], name: str
) -> tuple[pd.DataFrame, list[str]]:
    """A split in which readers' labels count: no image changes sets.

    A training image's label becomes known to the training; one of val or test counts in the
    evaluation alone.

    Args:
        frame: what `make_split` returns.
        labels: by path: normal, abnormal, unsure.
        name: of the labels file, for messages.

    Returns:
        The frame with other `label` and `semi_label`, and lines that count what changed.
    """
    made, rows = with_labels(frame, labels, name)
    semi = frame["semi_label"].to_numpy(np.int8).copy()
    train = frame["split"].to_numpy()[rows] == "train"
    known = np.array([SEMI[label] for label in labels.values()], np.int8)
    semi[rows] = np.where(train, known, UNKNOWN)
    made["semi_label"] = semi
    was, now = (one["label"].iloc[rows].fillna(-1).to_numpy(np.int8) for one in (frame, made))
    given = was >= 0
    in_sets = frame["split"].iloc[rows].value_counts()
    counts = ", ".join(f"{count} {split}" for split, count in in_sets.items())
    lines = [
        f"labels of readers: {len(rows)} images ({counts}); {(given & (now != was)).sum()} given "
        f"labels changed ({(given & (now < 0)).sum()} to unknown), "
        f"{(~given & (now >= 0)).sum()} blank ones filled",
        f"of them in training: {(train & (known == KNOWN_NORMAL)).sum()} known normal, "
        f"{(train & (known == KNOWN_ABNORMAL)).sum()} known abnormal; in val and test they count "
        "in the evaluation alone",
    ]
    return made, lines
