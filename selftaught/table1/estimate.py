"""How long a table will take, from two real optimizer steps of each of its stages."""

import contextlib
import dataclasses
import os
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selftaught import methods
from selftaught.errors import InputError
from selftaught.table1.plan import PRETEXT, Cell, digest
from selftaught.training.config import STAGES, Config
from selftaught.training.context import FINETUNE
from selftaught.training.run import run

STEPS = 2  # that are timed, after the first, which warms up
UNTRAINED = "none"  # the method of a first stage that is over at once


class Measured(Exception):
    """Enough steps were timed; ends the run that they were timed in."""


@dataclass
class Cost:
    """Of one stage of one run.

    Attributes:
        steps: optimizer steps.
        seconds: for each.
    """

    steps: int = 0
    seconds: float = 0.0


@dataclass
class Clock:
    """Hears a run's events and ends it after some steps of a stage."""

    stage: str
    times: list[float] = field(default_factory=list)
    steps: int = 0

    def __call__(self, event: str, **facts: Any) -> None:
        """Note the time of a step, the number of all of them."""
        if event == "progress" and facts["name"] == self.stage:
            self.steps = facts["total"]
        if event == "step" and facts["stage"] == self.stage:
            self.times.append(time.perf_counter())
            if len(self.times) == STEPS + 2:
                raise Measured

    @property
    def cost(self) -> Cost:
        """What was measured."""
        timed = self.times[1:] if len(self.times) > 2 else self.times
        seconds = (timed[-1] - timed[0]) / (len(timed) - 1) if len(timed) > 1 else 0.0
        return Cost(self.steps, seconds)


def measure(config: Config, stage: str, shown: set[str]) -> Cost:
    """Begin a run in a temporary folder, with all that belongs to a step, and time its steps.

    A second stage begins from an untrained first one. What it prints goes nowhere; a warning that
    another call has shown is not shown again.

    Raises:
        InputError: the run would be refused.
    """
    if getattr(config, stage).epochs == 0:
        return Cost()
    if stage == FINETUNE:
        config = dataclasses.replace(config, pretext=methods.options(UNTRAINED))
    clock = Clock(stage)
    parts = ("split", "pretrain", "finetune")[: 3 if stage == FINETUNE else 2]
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nothing:
        there = dataclasses.replace(config, out=str(Path(folder) / "run"))
        with warnings.catch_warnings(record=True) as heard:
            with contextlib.suppress(Measured), contextlib.redirect_stdout(nothing):
                run(there, parts, clock)
    for one in heard:
        if str(one.message) not in shown:
            shown.add(str(one.message))
            warnings.showwarning(one.message, one.category, one.filename, one.lineno)
    return clock.cost


def estimate(cells: Sequence[Cell], configs: Mapping[str, Config], slots: int) -> list[str]:
    """Lines of a table: row, runs, epochs, steps, seconds a step, hours.

    Args:
        cells: what is to be run; of each run one.
        configs: settings by run.
        slots: runs at a time.
    """
    costs: dict[str, Cost] = {}
    shown: set[str] = set()
    lines = [f"{'row':<20}{'runs':>5}{'epochs':>9}{'steps':>16}{'s a step':>16}{'hours':>8}"]
    total = 0.0
    for row in dict.fromkeys(cell.row for cell in cells):
        mine = [cell for cell in cells if cell.row == row]
        config = configs[mine[0].run]
        try:
            each = [_cost(config, stage, costs, shown) for stage in STAGES]
        except InputError as error:
            lines.append(f"{row:<20}{len(mine):>5}  will fail: {error}")
            continue
        own = [sum(not cell.donor for cell in mine), len(mine)]  # runs that train the stage
        hours = [n * one.steps * one.seconds / 3600 for n, one in zip(own, each, strict=True)]
        total += sum(hours)
        epochs = "+".join(str(getattr(config, stage).epochs) for stage in STAGES)
        steps = "+".join(f"{one.steps:,}" for one in each)
        seconds = "+".join(f"{one.seconds:.3g}" for one in each)
        lines.append(
            f"{row:<20}{len(mine):>5}{epochs:>9}{steps:>16}{seconds:>16}{sum(hours):>8.2f}"
        )
    lines.append(
        f"about {total / slots:.2f} hours with {slots} at a time: two steps of each stage timed "
        "here; without validation, scores and reports"
    )
    return lines


def _cost(config: Config, stage: str, known: dict[str, Cost], shown: set[str]) -> Cost:
    """The cost of a stage, measured once for the same settings; the seed does not matter."""
    alike = dataclasses.replace(config, seed=0)
    names = PRETEXT if stage != FINETUNE else (*PRETEXT[:-1], f"{FINETUNE}.")
    key = stage + digest(alike, "", names)
    if key not in known:
        known[key] = measure(config, stage, shown)
    return known[key]
