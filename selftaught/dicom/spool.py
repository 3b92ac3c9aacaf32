"""Films and results on disk between an archive's sending and its taking back.

```
spool/
    spool.json               the model whose films these are
    in/STUDY.FILM.dcm        a film, durable before its sender hears of success
    out/FILM/                its result, whole: result.json and the objects to send
    done/FI/FILM.json        what became of it, kept for good: a film that comes again is not new
```
STUDY and FILM are digests of UIDs, as no file's name may tell a patient. Each step writes the next
place before it empties the one before, so that a kill at any moment leaves a film in one of them at
least, and `known` makes two of them one.
"""

import hashlib
import json
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from selftaught.files import (
    claim_folder,
    disk_full,
    free_bytes,
    hold,
    machine_errors,
    write_atomic,
    write_folder,
)

RESERVE = 2**26  # bytes left for the results of what was taken
MARK, RESULT = "spool.json", "result.json"


def key_of(uid: str) -> str:
    """The name by which the spool knows a UID."""
    return hashlib.sha256(uid.encode()).hexdigest()[:32]


class Spool:
    """The folder. Films are taken by any thread, scored by one and sent by another.

    Args:
        folder: made where there is none.
        digest: of the model.

    Raises:
        InputError: it holds something else, is another model's, or another process works in it.
        MachineError: it cannot be written.
    """

    def __init__(self, folder: Path, digest: str) -> None:
        self.folder = folder
        words = {"model": "with another model, whose films it may hold"}
        claim_folder(folder, MARK, {"model": digest}, "a spool", words)
        self._lock, self._held = threading.Lock(), _held(folder)
        self._in, self._out = folder / "in", folder / "out"
        with machine_errors(folder):
            for place in (self._in, self._out, folder / "done"):
                place.mkdir(exist_ok=True)
        for path in (*self._in.glob(".*"), *self._out.glob(".*")):  # what a kill left half written
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        # Films by study, and when each study's last came: those of an earlier start may have more.
        self._waiting: dict[str, dict[str, Path]] = {}
        self._arrivals: dict[str, float] = {}
        for path in sorted(self._in.glob("*.dcm")):
            self._add(path)
        for path in self._out.iterdir():
            if self._done(path.name).exists():
                shutil.rmtree(path)

    def close(self) -> None:
        """Let other processes have it."""
        self._held.close()

    def _done(self, key: str) -> Path:
        return self.folder / "done" / key[:2] / f"{key}.json"

    def _add(self, path: Path) -> None:
        study, key, _ = path.name.split(".")
        self._waiting.setdefault(study, {})[key] = path
        self._arrivals[study] = time.monotonic()

    def known(self, key: str) -> bool:
        """Whether a film has a result, sent or not."""
        return (self._out / key).is_dir() or self._done(key).exists()

    def take(self, uid: str, study: str, data: bytes) -> bool:
        """Keep a film; when this returns it is on the disk.

        Returns:
            Whether it is new.

        Raises:
            MachineError: there is no room, or the disk failed; nothing was taken.
        """
        key = key_of(uid)
        path = self._in / f"{key_of(study)}.{key}.dcm"
        with self._lock:
            if self.known(key) or any(key in films for films in self._waiting.values()):
                return False
            if 0 <= free_bytes(self.folder) < len(data) + RESERVE:
                raise disk_full(self.folder, len(data))
            write_atomic(path, data)
            self._add(path)
        return True

    def ready(self, quiet: float) -> list[Path]:
        """Films of studies to which nothing came for `quiet` seconds."""
        now = time.monotonic()
        with self._lock:
            whole = [study for study, when in self._arrivals.items() if now - when >= quiet]
            return [path for study in whole for path in self._waiting[study].values()]

    def settle(self, path: Path, facts: Mapping[str, Any], objects: Sequence[bytes]) -> None:
        """Put a film's result in its place, unless there is one already.

        Args:
            path: of the film, which is deleted.
            facts: what is known of it, as JSON values.
            objects: to send; where there are none the film is done.

        Raises:
            MachineError: there is no room, or the disk failed; the film is where it was.
        """
        study, key, _ = path.name.split(".")
        text = json.dumps(facts, allow_nan=False) + "\n"
        if not self.known(key):
            if objects:
                files = {f"{number}.dcm": one for number, one in enumerate(objects)}
                write_folder(self._out / key, {RESULT: text, **files})
            else:
                self._finish(key, text)
        with self._lock:
            path.unlink(missing_ok=True)
            del self._waiting[study][key]
            if not self._waiting[study]:
                del self._waiting[study], self._arrivals[study]

    def outbox(self) -> list[str]:
        """Keys of the results to send, by name."""
        return sorted(path.name for path in self._out.glob("[!.]*"))

    def objects(self, key: str) -> list[Path]:
        """The objects of a result."""
        return sorted((self._out / key).glob("*.dcm"))

    def sent(self, key: str) -> None:
        """The archive has all of a result.

        Raises:
            MachineError: there is no room, or the disk failed; it will be sent again.
        """
        self._finish(key, (self._out / key / RESULT).read_text(encoding="utf-8"))
        shutil.rmtree(self._out / key)

    def _finish(self, key: str, text: str) -> None:
        path = self._done(key)
        with machine_errors(path):
            path.parent.mkdir(exist_ok=True)
        write_atomic(path, text)


def _held(folder: Path) -> IO[str]:
    """A lock that goes with this process."""
    with machine_errors(folder):
        handle = (folder / ".lock").open("a", encoding="utf-8")
    try:
        taken = "is in use by another process; choose another folder or end that one"
        hold(handle, folder, f"spool: {folder} {taken}")
    except BaseException:
        handle.close()
        raise
    return handle
