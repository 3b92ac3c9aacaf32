"""What has become of the cells of a table, read from their folders: nothing is remembered else."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from selftaught.files import sha256, write_atomic
from selftaught.table1.claim import alone, live
from selftaught.table1.plan import (
    DONE,
    FAILED,
    RUNNING,
    WAITING,
    WORK,
    Cell,
    read_plan,
    write_plan,
)

WRONG_INPUT = 2


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """How the attempts at a cell went that did not end well.

    Attributes:
        attempts: how many.
        code: exit code of the last.
        problem: its last line.
        failed: whether there will be no other.
    """

    attempts: int = 0
    code: int = 0
    problem: str = ""
    failed: bool = False


def work_file(out: Path, cell: Cell, kind: str) -> Path:
    """A file about a cell beside its run: claim, trouble or log."""
    return out / WORK / f"{cell.name.replace('/', '.')}.{kind}"


def is_done(run: Path) -> bool:
    """Whether a run is complete: its figures are of its scores, and its report is there."""
    try:
        figures = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        whole = figures["scores_sha256"] == sha256(run / "scores.csv")
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return whole and (run / "report.html").is_file()


def trouble(out: Path, cell: Cell) -> Trouble:
    """How earlier attempts at a cell went."""
    try:
        text = work_file(out, cell, "trouble").read_text(encoding="utf-8")
        return Trouble(**json.loads(text))
    except (OSError, ValueError, TypeError):
        return Trouble()


def note_trouble(out: Path, cell: Cell, found: Trouble) -> None:
    """Keep how an attempt went; whoever calls holds the cell's claim."""
    text = json.dumps(dataclasses.asdict(found), indent=1)
    write_atomic(work_file(out, cell, "trouble"), text + "\n")


def forgive(out: Path, cell: Cell) -> None:
    """Let a cell be tried again."""
    work_file(out, cell, "trouble").unlink(missing_ok=True)


def record(out: Path, wait: Callable[[], object], added: Sequence[Cell] = ()) -> list[Cell]:
    """Bring the states in plan.csv up to date.

    Args:
        out: the table's folder.
        wait: called while another process writes the plan.
        added: lines that belong into the plan, should another machine have lost them.

    Returns:
        The plan as written.
    """
    with alone(out / WORK / "plan.claim", wait):
        cells = read_plan(out)
        places = {cell.place for cell in cells}
        cells += [cell for cell in added if cell.place not in places]
        states = {cell.run: _state(out, cell) for cell in cells}
        cells = [
            dataclasses.replace(cell, state=state, problem=problem)
            for cell in cells
            for state, problem in [states[cell.run]]
        ]
        write_plan(out, cells)
    return cells


def _state(out: Path, cell: Cell) -> tuple[str, str]:
    if is_done(out / cell.run):
        return DONE, ""
    found = trouble(out, cell)
    if found.failed:
        return FAILED, found.problem
    running = live(work_file(out, cell, "claim"))
    return (RUNNING if running else WAITING), found.problem
