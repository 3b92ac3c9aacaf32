"""Rows of a benchmark with device, versions and date, as CSV."""

import csv
import datetime
import platform
from collections.abc import Callable
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
    cuda = torch.cuda.is_available()
    conditions = {
        "device": torch.cuda.get_device_name(0) if cuda else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }
    RESULTS.mkdir(exist_ok=True)
    path = place(name, "csv")
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(dict.fromkeys([*rows[0], *conditions])))
        writer.writeheader()
        writer.writerows([conditions | row for row in rows])
    return path


def place(name: str, suffix: str) -> Path:
    """results/<name>.<suffix>, or <name>_cuda of a machine with a GPU: each keeps its own."""
    return RESULTS / f"{name}{'_cuda' if torch.cuda.is_available() else ''}.{suffix}"
