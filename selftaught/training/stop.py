"""Stopping cleanly: a signal on any rank is seen by all ranks at the next step of any loop.

Without other ranks it needs no torch, whose import takes as long as preparing many films.
"""

import _thread
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
if hasattr(signal, "SIGUSR1"):
    EXIT_CODES[signal.SIGUSR1] = 143

# A launcher passes on to its ranks what the terminal or SLURM already sent to all of them: that is
# the same signal, not an impatient second one.
ECHO_SECONDS = 3.0
# Between two looks at each other while one rank works alone.
POLL_SECONDS = 0.05

SAVED = "what was done is saved, the same command goes on"

Result = TypeVar("Result")


class StopRun(BaseException):
    """The run was stopped by a signal, after saving; `code` is the process's exit code.

    Like KeyboardInterrupt no Exception: it may be raised between any two instructions, and a
    decoder that takes every Exception for a broken file must not take this one. `outcome` says what
    became of the work.
    """

    def __init__(self, code: int, outcome: str = SAVED) -> None:
        super().__init__(f"stopped by a signal (exit code {code})")
        self.code, self.outcome = code, outcome


class Stopper:
    """Remembers the first signal; one that comes seconds later ends the process at once."""

    def __init__(self) -> None:
        self.code = 0
        self.since = 0.0
        self.installed = False
        self.at_once = False

    def install(self) -> "Stopper":
        """Catch TERM, INT and USR1 from now on."""
        if threading.current_thread() is threading.main_thread():
            for number in EXIT_CODES:
                signal.signal(number, self._remember)
            self.installed = True
        return self

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.code:
            if time.monotonic() - self.since > ECHO_SECONDS:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        self.since = time.monotonic()
        self.code = EXIT_CODES[signal.Signals(number)]
        if self.at_once:
            raise StopRun(self.code)

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """A signal ends what is inside between two of its instructions, by `StopRun`."""
        self.at_once = True
        try:
            if self.code:
                raise StopRun(self.code)
            yield
        finally:
            self.at_once = False

    def interrupt(self, code: int) -> None:
        """Let the main thread take it that a signal with this exit code arrived."""
        if self.installed and not self.code:
            _thread.interrupt_main(signal.SIGINT if code == 130 else signal.SIGTERM)

    def requested(self, device: "torch.device | str" = "cpu") -> bool:
        """Whether any rank was asked to stop; all ranks get the same answer."""
        from selftaught import distributed

        return distributed.any_rank(bool(self.code), device)

    def exit(self, outcome: str = SAVED) -> StopRun:
        """The exception that ends the run, with the exit code all ranks share."""
        from selftaught import distributed

        return StopRun(max(distributed.gather_objects(self.code)), outcome)


def first_rank_alone(work: Callable[[], Result], stopper: Stopper) -> Result | None:
    """Let rank 0 do `work`, however long, while the others wait and signals are agreed.

    Args:
        work: communicates nothing and writes whole files or none: a signal to any rank ends it
            wherever it is.
        stopper: its signals.

    Returns:
        What `work` returned on rank 0, None on the others.

    Raises:
        StopRun: a signal arrived at any rank.
    """
    from selftaught import distributed

    if distributed.world_size() == 1:
        with stopper.interrupting():
            return work()
    result = None
    if distributed.is_main():
        result = _main_works(work, stopper)
    else:
        _agree(None, stopper)
    if stopper.requested(distributed.communication_device()):
        raise stopper.exit()
    return result


def _main_works(work: Callable[[], Result], stopper: Stopper) -> Result | None:
    # The work has the main thread, which alone can be interrupted; a second one talks to the ranks.
    over, lost = threading.Event(), []

    def talk() -> None:
        try:
            _agree(over, stopper)
        except Exception as error:
            lost.append(error)
            stopper.interrupt(143)

    talking = threading.Thread(target=talk, name="selftaught-waits")
    talking.start()
    result = None
    try:
        with stopper.interrupting():
            result = work()
    except StopRun:
        pass  # all ranks raise it together
    finally:
        over.set()
        talking.join()
    if lost:
        raise lost[0]
    return result


def _agree(over: threading.Event | None, stopper: Stopper) -> None:
    """Ask all ranks for signals until rank 0, which alone has `over`, says that it is done."""
    from selftaught import distributed

    device = distributed.communication_device()
    while not distributed.broadcast_object(over is not None and over.wait(POLL_SECONDS)):
        if stopper.requested(device):
            stopper.interrupt(stopper.exit().code)
