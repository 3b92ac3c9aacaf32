"""One checked table of images from a CSV, a parquet file, a folder or the MURA-v1.1 tree.

Every source becomes the same table; what is wrong with it ends in one `InputError` line that
names the row as a spreadsheet counts it (the header is row 1, blank lines count).
"""

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from selftaught.data.manifest import check
from selftaught.data.manifest.archive import unpacked
from selftaught.data.manifest.disk import Spelling, files_exist
from selftaught.data.manifest.films import is_directory
from selftaught.data.manifest.folder import class_folders, own_list, read_classes, read_films
from selftaught.data.manifest.mura import is_mura, read_mura
from selftaught.data.manifest.read import Source, read_csv, read_parquet
from selftaught.data.manifest.spelling import one_spelling
from selftaught.errors import InputError

KINDS = ".csv, .parquet, a folder, a ZIP of one, or a CD's DICOMDIR"


@dataclass(frozen=True, eq=False)
class Manifest:
    """The images of a data set and what is known about them.

    Attributes:
        root: absolute folder that the paths are relative to.
        table: one row per image, RangeIndex, in the order of the source. Columns `path` (posix),
            `label` (Int8: 0 normal, 1 abnormal, NA blank), `patient`, `study`, `body_part`,
            `mask`, `split` (text, "" where absent), `semi_label` (Int8: -1, 0, +1, NA where
            absent), then the source's other columns as text.
        name: what messages call the source.
        rows: (N,) row numbers of the source, or None for a source that has no rows.
    """

    root: Path
    table: pd.DataFrame
    name: str = "manifest"
    rows: np.ndarray | None = None

    def where(self, index: int) -> str:
        """Name row `index` of the table as the user finds it in the source."""
        if self.rows is None:
            return f"{self.name}, {check.show(str(self.table['path'].iloc[index]))}"
        return f"{self.name} row {self.rows[index]}"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the table's content; neither order nor wholly blank columns count."""
        order = self.table["path"].argsort(kind="stable").to_numpy()
        digest = hashlib.sha256()
        for column in sorted(self.table.columns):
            cells = self.table[column].iloc[order]
            if cells.dtype == "Int8":
                cells = cells.astype("str").where(cells.notna(), "")
            texts = cells.tolist()
            if not any(texts):
                continue
            lengths = np.fromiter(map(len, texts), np.int64, len(texts))
            for part in (column.encode(), lengths.tobytes(), "".join(texts).encode()):
                digest.update(len(part).to_bytes(8, "little") + part)
        return digest.hexdigest()


def read_manifest(
    source: str | os.PathLike[str],
    *,
    allow_outside: bool = False,
    check_files: bool = True,
    missing: bool = False,
    unlabelled: bool = False,
) -> Manifest:
    """Read and check a manifest.

    Patients, studies and body parts have one spelling each (`spelling.one_spelling`), and paths
    that of the disk. What of a folder is no film is named in a warning.

    Args:
        source: a `.csv` or `.parquet` file; a folder that holds `manifest.csv`; a folder with
            `normal/` and `abnormal/`; or the MURA-v1.1 folder. A MURA label is read from the
            study folder's name, `study` becomes patient/part/study because study names repeat,
            and the official split is dropped: `split` stays blank. A DICOMDIR stands for its
            folder, and a `.zip` for the folder in it, which is unpacked beside it (`archive`).
        allow_outside: accept paths that are absolute, hold `..` or lead out by a symbolic link.
        check_files: also check that every image and mask exists and, unless `allow_outside`,
            that no symbolic link leads out of the folder. Without it folders are listed at most.
        missing: accept files that do not exist; whoever reads them is told so.
        unlabelled: also accept any other folder: all films below it, without labels.

    Returns:
        The manifest; nothing of an image was opened.

    Raises:
        InputError: the source is missing, unreadable, or a row of it is wrong.
    """
    path = Path(source).absolute()
    if path.suffix.lower() == ".zip" and path.is_file():
        path = unpacked(path)
    if is_directory(path):  # of a CD; what it lists is below its folder
        path = path.parent
    if path.is_dir():
        read = _read_folder(path, unlabelled)
    elif not path.exists():
        raise InputError(f"{source}: no such file or folder; allowed: {KINDS}")
    elif path.suffix.lower() == ".csv":
        read = read_csv(path)
    elif path.suffix.lower() in (".parquet", ".pq"):
        read = read_parquet(path)
    else:
        raise InputError(f"{source}: file type {path.suffix!r}; allowed: {KINDS}")
    return _checked(read, allow_outside, check_files, missing)


def _read_folder(folder: Path, unlabelled: bool) -> Source:
    if is_mura(folder):
        return read_mura(folder)
    if (listed := own_list(folder)) is not None:
        return read_csv(listed)
    if classes := class_folders(folder):
        return read_classes(folder, classes)
    if unlabelled:
        return read_films(folder)
    raise InputError(
        f"{folder}: no manifest; allowed: manifest.csv, folders normal/ and abnormal/, or the "
        "MURA-v1.1 folder"
    )


def _checked(read: Source, allow_outside: bool, check_files: bool, missing: bool) -> Manifest:
    """Turn the cells of a source into the manifest's table, or raise on the first wrong row."""
    columns = dict(read.columns)
    count = len(columns["path"])
    absent = [name for name in check.COLUMNS if name not in columns]
    columns |= dict.fromkeys(absent, [""] * count)

    def where(index: int) -> str:
        if read.rows is None:
            return f"{read.name}, {check.show(columns['path'][index])}"
        return f"{read.name} row {read.rows[index]}"

    on_disk = Spelling(read.root)
    for name in ("path", "mask"):
        cells = check.clean_paths(columns[name], name, allow_outside, where)
        columns[name] = [on_disk.of(path) for path in cells]
    for name in ("patient", "study", "body_part"):
        columns[name] = one_spelling(columns[name], name, read.name)
    check.unique_paths(columns["path"], where)
    label = check.coded(columns["label"], "label", check.LABELS, where)
    semi_label = check.coded(columns["semi_label"], "semi_label", check.SEMI_LABELS, where)
    check.split_names(columns["split"], where)
    check.consistent(label, semi_label, where)
    if check_files:
        for name in ("path", "mask"):
            files_exist(read.root, columns[name], name, allow_outside, where, missing)
    others = [name for name in columns if name not in check.COLUMNS]
    blank = pd.Series("", index=range(count), dtype="str")
    texts = {
        name: blank if name in absent else pd.Series(columns[name], dtype="str")
        for name in (*check.COLUMNS, *others)
    }
    table = pd.DataFrame({**texts, "label": label, "semi_label": semi_label})
    return Manifest(read.root, table, read.name, read.rows)
