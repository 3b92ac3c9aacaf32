"""Who works on what, over all processes of all machines that share a folder.

`flock` goes with its process however that ends, but not every network file system passes it on to
other machines. So beside it stands a claim file that is made with O_EXCL and touched every 30 s:
one that nobody has touched for five minutes is nobody's.
"""

import contextlib
import fcntl
import json
import os
import platform
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from selftaught.files import machine_errors

RENEWED = 30.0
STALE = 300.0
BOOT = Path("/proc/sys/kernel/random/boot_id")


def machine() -> str:
    """This machine since its last start, where the system tells; its name elsewhere."""
    try:
        return BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return platform.node()


class Claim:
    """A piece of work that is this process's alone, from `take` to `release`.

    Args:
        path: of the claim file; NAME.lock beside it is the lock.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, path.with_suffix(".lock")
        self.token = uuid.uuid4().hex
        self.lost = False  # whether another has taken it over meanwhile
        self._handle: IO[str] | None = None
        self._over = threading.Event()
        self._renewing: threading.Thread | None = None

    def take(self) -> bool:
        """Whether it is ours now; False: somebody has it.

        Raises:
            MachineError: the disk is full or the folder cannot be written.
        """
        with machine_errors(self.path):
            return self._take()

    def _take(self) -> bool:
        self._handle = self.lock.open("a", encoding="utf-8")
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except BlockingIOError:
            self._handle.close()
            return False
        except OSError:  # a file system without locks
            locked = False
        try:
            taken = self._make() or (self._take_over(locked) and self._make())
        except OSError:
            self._handle.close()  # else the lock stays for as long as this object
            raise
        if not taken:
            self._handle.close()
            return False
        self.lost = False
        self._over.clear()
        self._renewing = threading.Thread(target=self._renew, daemon=True, name="selftaught-claim")
        self._renewing.start()
        return True

    def _make(self) -> bool:
        try:
            number = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        facts = {"machine": machine(), "process": os.getpid(), "token": self.token}
        try:
            with open(number, "w", encoding="utf-8") as handle:
                json.dump(facts | {"name": platform.node()}, handle)
        except OSError:  # a claim without content would be another machine's, to everybody
            self.path.unlink(missing_ok=True)
            raise
        return True

    def _take_over(self, locked: bool) -> bool:
        """Take a claim away that nobody keeps up any more, by one rename."""
        there = _facts(self.path)
        # Of this machine, and its lock is free: the process is gone, however young the claim.
        gone = locked and there.get("machine") == machine()
        if not gone and age(self.path) < STALE:
            return False
        aside = self.path.with_name(f"{self.path.name}.{self.token}")
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return False  # another one did
        if _facts(aside) != there:  # another one did, and this is its own
            with contextlib.suppress(OSError):
                os.link(aside, self.path)
            aside.unlink()
            return False
        aside.unlink()
        return True

    def _renew(self) -> None:
        while not self._over.wait(RENEWED):
            if _facts(self.path).get("token") != self.token:
                self.lost = True
                return
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def release(self) -> None:
        """Leave it to others."""
        self._over.set()
        if self._renewing is not None:
            self._renewing.join()
        if _facts(self.path).get("token") == self.token:
            self.path.unlink(missing_ok=True)
        if self._handle is not None:
            self._handle.close()


@contextlib.contextmanager
def alone(path: Path, wait: Callable[[], object]) -> Iterator[None]:
    """Hold a claim for a while.

    Args:
        path: of the claim file.
        wait: called as long as somebody else has it; may raise to give up.
    """
    claim = Claim(path)
    while not claim.take():
        wait()
    try:
        yield
    finally:
        claim.release()


def live(path: Path) -> bool:
    """Whether somebody keeps a claim up, as far as its file tells."""
    return path.exists() and age(path) < STALE


def age(path: Path) -> float:
    """Seconds since a claim was renewed, by the clock of the file system; infinite: no claim."""
    probe = path.with_name(f".{path.name}.{uuid.uuid4().hex}.now")
    try:
        then = path.stat().st_mtime
        probe.touch()
        return probe.stat().st_mtime - then
    except FileNotFoundError:
        return float("inf")
    finally:
        probe.unlink(missing_ok=True)


def _facts(path: Path) -> dict[str, Any]:
    """What stands in a claim; nothing where there is none, or its maker is just writing it."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return facts if isinstance(facts, dict) else {}
    except (OSError, ValueError):
        return {}
