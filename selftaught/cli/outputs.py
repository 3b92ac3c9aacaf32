"""Where a command may write: a file of the right kind, never over one that is something else."""

import csv
import json
from collections.abc import Collection
from pathlib import Path

from selftaught.errors import InputError


def check_out(path: Path, marks: Collection[str], kind: str = ".csv") -> None:
    """Refuse a file that a command should not write.

    Args:
        path: the file; one that exists may be replaced only by its like.
        marks: columns of such a CSV file, or keys of such a JSON file.
        kind: suffix it must have, .csv or .json.

    Raises:
        InputError: another suffix, no such folder, or a file that holds something else.
    """
    if path.suffix != kind:
        raise InputError(f"out is {str(path)!r}; allowed: a {kind} file")
    if not path.parent.is_dir():
        raise InputError(f"out is {str(path)!r}: there is no folder {path.parent}")
    check_replace(path, marks)


def check_replace(path: Path, marks: Collection[str]) -> None:
    """Refuse to replace a file that has not the columns or keys of what will be written.

    Raises:
        InputError: it exists and holds something else.
    """
    if path.is_file() and path.stat().st_size and not set(marks) <= _names(path):
        raise InputError(
            f"{path}: exists and was not written by this command; allowed: a new file, or one "
            f"with {', '.join(marks)}"
        )


def _names(path: Path) -> set[str]:
    """The columns of a CSV file, the keys of a JSON file; none of a file that is neither."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            if path.suffix == ".json":
                content = json.load(lines)
                return set(content) if isinstance(content, dict) else set()
            return set(next(csv.reader(lines), ()))
    except (ValueError, csv.Error):
        return set()
