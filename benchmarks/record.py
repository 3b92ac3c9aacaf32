"""Rows of a benchmark with device, versions and date, as CSV."""

import csv
import datetime
import os
import platform
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

RESULTS = Path(__file__).with_name("results")


def kept(name: str, wanted: Callable[[dict[str, str]], bool]) -> list[dict[str, object]]:
    """Earlier rows of the same file, with the conditions of their own run; none: []."""
    path = place(name, "csv")
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as handle:
        return [dict(row) for row in csv.DictReader(handle) if wanted(row)]


def write(name: str, rows: list[dict[str, object]]) -> Path:
    """Write `rows` to the CSV of a benchmark, each with the conditions it was measured under.

    Rows that hold conditions already, from `kept`, keep them.
    """
    here = conditions()
    RESULTS.mkdir(exist_ok=True)
    path = place(name, "csv")
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(dict.fromkeys([*rows[0], *here])))
        writer.writeheader()
        writer.writerows([here | row for row in rows])
    return path


def conditions() -> dict[str, object]:
    """What a row was measured under."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name(0) if cuda else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }


def processor() -> str:
    """Model of the CPU, its architecture where the system does not name it."""
    facts = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.+)", facts.read_text()) if facts.exists() else None
    return named[1] if named else platform.machine()


class Rows:
    """A CSV that holds every row as soon as it is measured, whatever ends the program after it.

    Args:
        path: continued where it exists.
        columns: those of the rows; conditions and the host's CPU are added.
        more: a condition of every row.
    """

    def __init__(self, path: Path, columns: Sequence[str], **more: object) -> None:
        self.path = path
        self.conditions = conditions() | {"host": processor()} | more
        self.columns = list(dict.fromkeys([*columns, *self.conditions]))

    def add(self, **row: object) -> None:
        """Append one row, on the disk when this returns."""
        with self.path.open("a", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, self.columns)
            if not handle.tell():
                writer.writeheader()
            writer.writerow(self.conditions | row)
            handle.flush()
            os.fsync(handle.fileno())
        print({key: value for key, value in row.items() if value not in ("", None)}, flush=True)


def place(name: str, suffix: str) -> Path:
    """results/<name>.<suffix>, or <name>_cuda of a machine with a GPU: each keeps its own."""
    return RESULTS / f"{name}{'_cuda' if torch.cuda.is_available() else ''}.{suffix}"
