"""Stopping cleanly: a signal on any rank is seen by all ranks at the next step of any loop."""

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

import torch

from selftaught import distributed

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
if hasattr(signal, "SIGUSR1"):
    EXIT_CODES[signal.SIGUSR1] = 143

# A launcher passes on to its ranks what the terminal or SLURM already sent to all of them: that is
# the same signal, not an impatient second one.
ECHO_SECONDS = 3.0


class StopRun(Exception):
    """The run was stopped by a signal, after saving; `code` is the process's exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"stopped by a signal (exit code {code})")
        self.code = code


class Stopper:
    """Remembers the first signal; one that comes seconds later ends the process at once."""

    def __init__(self) -> None:
        self.code = 0
        self.since = 0.0

    def install(self) -> "Stopper":
        """Catch TERM, INT and USR1 from now on."""
        if threading.current_thread() is threading.main_thread():
            for number in EXIT_CODES:
                signal.signal(number, self._remember)
        return self

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.code:
            if time.monotonic() - self.since > ECHO_SECONDS:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        self.since = time.monotonic()
        self.code = EXIT_CODES[signal.Signals(number)]

    def requested(self, device: torch.device | str = "cpu") -> bool:
        """Whether any rank was asked to stop; all ranks get the same answer."""
        return distributed.any_rank(bool(self.code), device)

    def exit(self) -> StopRun:
        """The exception that ends the run, with the exit code all ranks share."""
        return StopRun(max(distributed.gather_objects(self.code)))


def first_rank_alone(work: Callable[[], object], stopper: Stopper) -> None:
    """Let rank 0 do `work`, however long, while the others wait and signals are agreed.

    Raises:
        StopRun: a signal arrived at any rank, and `work` ended since it looks at `stopper.code`.
    """
    if distributed.world_size() == 1:
        work()
        return
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(work) if distributed.is_main() else None
        while not distributed.broadcast_object(job is not None and job.done()):
            if stopper.requested(distributed.communication_device()):
                stopper.code = stopper.exit().code
            time.sleep(0.1)
        error = job.exception() if job is not None else None
        if error is not None and not isinstance(error, StopRun):
            raise error
    if stopper.requested(distributed.communication_device()):
        raise stopper.exit()
