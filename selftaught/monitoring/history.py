"""monitor.csv: a row for every run of `selftaught monitor`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from selftaught.errors import InputError
from selftaught.files import machine_errors, write_atomic
from selftaught.monitoring.drift import Test
from selftaught.monitoring.observed import TESTS

MARKS = ("date", "list", "films", "against", "alarms")


def append(path: Path, facts: Mapping[str, Any], tests: Sequence[Test]) -> pd.DataFrame:
    """Add a run to the file, in one step: a kill leaves it as it was.

    Args:
        path: monitor.csv; its folder is made where it is missing.
        facts: of the run, its first columns.
        tests: of the run; `p NAME` is adjusted by Holm.

    Returns:
        All runs, as text, the last one at the end.

    Raises:
        InputError: the file is damaged.
        MachineError: the disk is full or the folder cannot be written.
    """
    adjusted = {test.name: test.adjusted for test in tests}
    values = {f"p {name}": adjusted.get(name) for name in TESTS}
    alarms = "; ".join(test.name for test in tests if test.alarm)
    row = pd.DataFrame([{**facts, "alarms": alarms, **values}]).astype(object)
    row = row.where(row.notna(), "").astype(str)
    with machine_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    runs = row
    if path.exists():
        try:
            earlier = pd.read_csv(path, dtype=str, keep_default_na=False)
        except (ValueError, OSError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{path}: cannot be read: {reason}; mend or move it") from error
        runs = pd.concat([earlier, row], ignore_index=True).fillna("")
    write_atomic(path, lambda target: runs.to_csv(target, index=False))
    return runs
