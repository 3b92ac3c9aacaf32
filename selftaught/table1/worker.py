"""Carries out the cells of a plan, as one of any number of workers on any number of machines."""

import fcntl
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from selftaught.console import Bar, Console
from selftaught.table1 import share
from selftaught.table1.claim import Claim, live
from selftaught.table1.job import COMMAND, STOPPED, Job
from selftaught.table1.plan import PRETEXT, SPLIT, Cell, digest, settings_of, settings_path
from selftaught.table1.status import (
    WRONG_INPUT,
    Trouble,
    forgive,
    is_done,
    note_trouble,
    record,
    trouble,
    work_file,
)
from selftaught.training.config import STAGES, Config
from selftaught.training.folder import LOCK
from selftaught.training.stop import Stopper, StopRun
from selftaught.workers import available_cores

# Seconds between looks at own processes, at what others do, and at epochs that are behind.
LOOK, SCAN, COUNT = 0.2, 2.0, 10.0
SAVED = "what was done is saved, the same command goes on with the table"


@dataclass(frozen=True, kw_only=True)
class Means:
    """What a worker works with.

    Args:
        slots: runs at a time.
        ranks: processes of a run.
        retry: further attempts at a run whose machine failed.
        devices: names of GPUs for CUDA_VISIBLE_DEVICES; none: no GPUs.
        command: how the program is called.
    """

    slots: int = 1
    ranks: int = 1
    retry: int = 3
    devices: Sequence[str] = ()
    command: Sequence[str] = COMMAND

    @property
    def threads(self) -> int:
        """Of each process."""
        return max(1, available_cores() // (self.slots * self.ranks))

    def environment(self, slot: int) -> dict[str, str]:
        """Of the processes in a slot."""
        own = {"OMP_NUM_THREADS": str(self.threads), **os.environ}
        if self.devices:
            first = slot * self.ranks
            mine = [self.devices[(first + i) % len(self.devices)] for i in range(self.ranks)]
            own["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
        return own


@dataclass
class Run:
    """A run of the table, and what of it others can share."""

    cell: Cell
    config: Config
    split: str
    pretext: str

    @property
    def epochs(self) -> int:
        """Of all its stages."""
        return sum(int(getattr(self.config, stage).epochs) for stage in STAGES)


def wait_for(stopper: Stopper) -> Callable[[], None]:
    """Waits a moment for others at each call; ends where a signal arrived."""

    def wait() -> None:
        if stopper.code:
            raise StopRun(stopper.code, SAVED)
        time.sleep(LOOK)

    return wait


class Worker:
    """Takes one cell after the other until all are done or have failed.

    Args:
        out: the table's folder.
        cells: of its plan.
        means: what it works with.
        stopper: signals.
    """

    def __init__(self, out: Path, cells: Sequence[Cell], means: Means, stopper: Stopper) -> None:
        self.out, self.means, self.stopper = out, means, stopper
        self.cells, self.wait = cells, wait_for(stopper)
        self.runs = [_run(out, cell) for cell in {one.run: one for one in cells}.values()]
        # A cell that others wait for goes first.
        self.runs.sort(key=lambda run: run.cell.donor != "")
        self.jobs: dict[int, tuple[Run, Claim, Job]] = {}
        self.done: set[str] = set()
        self.ending = 0
        self.console = Console(stderr=True, highlight=False)

    def work(self, only: str = "") -> list[Cell]:
        """Carry out all cells, or one of them by name, until each is done or has failed.

        Returns:
            The plan with what became of its cells.

        Raises:
            StopRun: a signal arrived here or at a run; all that ran was saved.
        """
        asked = [run for run in self.runs if only in ("", run.cell.name)]
        for run in asked:
            if trouble(self.out, run.cell).code != WRONG_INPUT or only:
                self._forgive(run)
        epochs, begun = sum(run.epochs for run in asked), self._epochs(asked)
        bar = Bar("table", epochs, begun, unit="epochs", console=self.console)
        scanned = counted = -math.inf
        try:
            while True:
                if self._reap():
                    scanned = -math.inf
                if self.stopper.code or self.ending:
                    self._stop_all()
                now = time.monotonic()
                if now - scanned > SCAN:
                    scanned = now
                    while len(self.jobs) < self.means.slots and self._start_next(asked, bool(only)):
                        pass
                    if not self.jobs and all(self._settled(run) for run in asked):
                        break
                if now - counted > COUNT:
                    counted = now
                    bar.advance(self._epochs(asked), self._said(asked))
                time.sleep(LOOK)
        finally:
            bar.close()
            self._leave()
        return record(self.out, self.wait, self.cells)

    def _forgive(self, run: Run) -> None:
        claim = Claim(work_file(self.out, run.cell, "claim"))
        if work_file(self.out, run.cell, "trouble").exists() and claim.take():
            forgive(self.out, run.cell)
            claim.release()

    def _settled(self, run: Run) -> bool:
        """Whether a run is done or has failed."""
        return self._is_done(run) or trouble(self.out, run.cell).failed

    def _is_done(self, run: Run) -> bool:
        if run.cell.run not in self.done and is_done(self.out / run.cell.run):
            self.done.add(run.cell.run)
        return run.cell.run in self.done

    def _start_next(self, asked: Sequence[Run], alone: bool) -> bool:
        """Start the first run that can be; whether there was one."""
        for run in asked:
            if self._settled(run) or not self._may_start(run, alone):
                continue
            claim = Claim(work_file(self.out, run.cell, "claim"))
            if not claim.take():
                continue
            # Another may have ended it, or somebody runs it by hand.
            self.done.discard(run.cell.run)
            if self._settled(run) or _in_use(self.out / run.cell.run):
                claim.release()
                continue
            self._start(run, claim)
            return True
        return False

    def _start(self, run: Run, claim: Claim) -> None:
        slot = next(i for i in range(self.means.slots) if i not in self.jobs)
        cell = run.cell
        taken = self._begin(run)
        words = [*self.means.command, "run", "--config", str(settings_path(self.out, cell))]
        words += ["--out", str(self.out / cell.run)]
        if self.means.slots > 1 and run.config.data.workers == "auto":
            words += ["--data.workers", str(self.means.threads)]
        self._say(f"{cell.name}: started{taken}")
        job = Job(
            words,
            ranks=self.means.ranks,
            log=work_file(self.out, cell, "log"),
            environment=self.means.environment(slot),
        )
        self.jobs[slot] = (run, claim, job)
        record(self.out, self.wait, self.cells)

    def _trainer(self, run: Run) -> tuple[Run | None, bool]:
        """The run whose first stage this one takes, and whether that is finished; None: its own."""
        if not run.config.pretext.epochs or share.has_begun(self.out / run.cell.run):
            return None, False
        alike = [one for one in self.runs if one.pretext == run.pretext]
        for one in alike:
            if one is not run and share.first_stage_is_there(self.out / one.cell.run):
                return one, True
        open_ = (one for one in alike if not self._settled(one))
        first = next(open_, run)
        return (None if first is run else first), False

    def _may_start(self, run: Run, alone: bool) -> bool:
        """Whether a run has all it waits for; one that is run alone waits for work in hand only."""
        trainer, finished = self._trainer(run)
        if trainer is None or finished:
            return True
        return alone and not live(work_file(self.out, trainer.cell, "claim"))

    def _begin(self, run: Run) -> str:
        """Begin a run with what it can take from others; what that is, in words."""
        if share.has_begun(self.out / run.cell.run):
            return ""
        trainer, finished = self._trainer(run)
        alike = [one for one in self.runs if one.split == run.split and one is not run]
        begun = (one for one in alike if share.has_begun(self.out / one.cell.run))
        source = trainer if finished else next(begun, None)
        if source is None or not share.begin_from(
            self.out,
            source.cell.run,
            run.cell.run,
            run.config,
            pretext=finished,
            ranks=self.means.ranks,
        ):
            return ""
        return f" with the {'first stage' if finished else 'split'} of {source.cell.name}"

    def _reap(self) -> bool:
        """Take note of what has ended; whether anything has."""
        before = len(self.jobs)
        for slot, (run, claim, job) in list(self.jobs.items()):
            if claim.lost:  # as after a sleep of the machine
                job.stop()
            if (code := job.code()) is None:
                continue
            del self.jobs[slot]
            if not claim.lost:
                self._note(run, job, code)
            claim.release()
            record(self.out, self.wait, self.cells)
        return len(self.jobs) < before

    def _note(self, run: Run, job: Job, code: int) -> None:
        cell, before = run.cell, trouble(self.out, run.cell)
        if code == 0 and is_done(self.out / cell.run):
            forgive(self.out, cell)
            self._say(f"{cell.name}: done")
            return
        if code in STOPPED:
            self.ending = self.ending or code
            return
        line = job.last_words()
        # What does not fit into memory once may have met another program; twice, it does not fit.
        most = min(self.means.retry, 1) if "out of memory" in line else self.means.retry
        failed = code == WRONG_INPUT or before.attempts >= most
        found = Trouble(attempts=before.attempts + 1, code=code, problem=line, failed=failed)
        note_trouble(self.out, cell, found)
        then = "failed" if failed else "starts again"
        self._say(f"{cell.name}: {then}: {line}")

    def _stop_all(self) -> None:
        """Let all runs save, wait for them, and end."""
        code = self.stopper.code or self.ending
        for _, _, job in self.jobs.values():
            job.stop()
        while self.jobs:
            self._reap()
            time.sleep(LOOK)
        raise StopRun(code, SAVED)

    def _leave(self) -> None:
        """However this ends: no run goes on without a claim."""
        for _, claim, job in self.jobs.values():
            job.stop()
            for process in job.processes:
                process.wait()
            claim.release()
        self.jobs.clear()

    def _epochs(self, asked: Sequence[Run]) -> int:
        """Epochs behind us, of the runs that are done or go on."""
        return sum(
            run.epochs if self._is_done(run) else min(_epochs_of(self.out, run), run.epochs)
            for run in asked
        )

    def _said(self, asked: Sequence[Run]) -> str:
        done = sum(self._is_done(run) for run in asked)
        return f"epochs, {done} of {len(asked)} runs done, {len(self.jobs)} at work here"

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)


def _run(out: Path, cell: Cell) -> Run:
    config = settings_of(out, cell)
    return Run(cell, config, digest(config, "", SPLIT), digest(config, "", PRETEXT))


def _epochs_of(out: Path, run: Run) -> int:
    try:
        text = (out / run.cell.run / share.LINES).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    return text.count('"kind": "epoch"')


def _in_use(run: Path) -> bool:
    """Whether somebody works in a run folder, such as a run whose worker was killed."""
    try:
        with (run / LOCK).open("r+", encoding="utf-8") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError:  # no locks here; the claim decides
        return False
    return False
