"""Rows of a benchmark with device, versions and date, as CSV."""

import csv
import datetime
import platform
from pathlib import Path

import torch

RESULTS = Path(__file__).with_name("results")


def write(name: str, rows: list[dict[str, object]]) -> Path:
    """Write `rows` to results/<name>.csv, each with the conditions it was measured under."""
    cuda = torch.cuda.is_available()
    conditions = {
        "device": torch.cuda.get_device_name(0) if cuda else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.csv"
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, [*rows[0], *conditions])
        writer.writeheader()
        writer.writerows([row | conditions for row in rows])
    return path
