"""A cell at work: `selftaught run` as one process or as several ranks, and how it ended."""

import ctypes
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from selftaught.table1.status import WRONG_INPUT
from selftaught.training.stop import EXIT_CODES

COMMAND = (sys.executable, "-m", "selftaught")
MACHINE = 3
STOPPED = {*EXIT_CODES.values()} | {-number for number in EXIT_CODES}
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_LINE = "selftaught: "


class Job:
    """The processes of one run.

    They are started as torchrun would, without it between: its exit code hides whether a run was
    saved or its input is wrong, and it kills its ranks 30 s after TERM.

    Args:
        words: the command and its options.
        ranks: processes.
        log: file that gets what they print.
        environment: of the processes.
    """

    def __init__(
        self, words: Sequence[str], *, ranks: int, log: Path, environment: Mapping[str, str]
    ) -> None:
        self.log, self._stopped = log, False
        port = str(_free_port()) if ranks > 1 else "0"
        with log.open("ab") as handle:
            self._start = handle.tell()
            self.processes = [
                subprocess.Popen(
                    list(words),
                    stdin=subprocess.DEVNULL,
                    stdout=handle,
                    stderr=handle,
                    env={**environment, **_rank(rank, ranks, port)},
                    preexec_fn=_end_with_worker if sys.platform == "linux" else None,
                )
                for rank in range(ranks)
            ]

    def code(self) -> int | None:
        """Exit code of the run; None: it goes on."""
        codes = [process.poll() for process in self.processes]
        if None in codes:
            return None
        if WRONG_INPUT in codes:
            return WRONG_INPUT
        if stopped := sorted(STOPPED.intersection(codes)):
            # One that ended before it could take the signal has nothing to save.
            return 130 if stopped in ([130], [-signal.SIGINT]) else 143
        return MACHINE if any(codes) else 0

    def stop(self) -> None:
        """Let it save and end; a second signal, seconds later, would end it at once."""
        if not self._stopped:
            self._stopped = True
            for process in self.processes:
                if process.poll() is None:
                    process.terminate()

    def last_words(self) -> str:
        """The line that says why it ended."""
        with self.log.open("rb") as handle:
            handle.seek(self._start)
            text = handle.read().decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        own = [line for line in lines if line.startswith(_LINE) and "warning:" not in line[:24]]
        if own:
            return own[-1].removeprefix(_LINE)
        killed = [process.returncode for process in self.processes if process.returncode < 0]
        if killed:
            return f"killed by signal {-killed[0]} (out of memory?)"
        return lines[-1] if lines else "ended without a word"


def _rank(rank: int, ranks: int, port: str) -> dict[str, str]:
    """What a launcher tells a rank; of one, that no launcher around this one is meant."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _end_with_worker() -> None:
    """A worker that is killed takes its runs along: nobody would renew their claims."""
    if _LIBC is not None:
        _LIBC.prctl(_DIE_WITH_PARENT, signal.SIGTERM)
