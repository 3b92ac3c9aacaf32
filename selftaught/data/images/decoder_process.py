"""Decoding by libraries that a damaged file can crash, where a crash harms nothing.

GDCM ends the process, or writes over its memory, on about one in four hundred files with a few
changed bytes. So each of its frames is decoded in a process forked for it alone, with a limit of
memory and of time; the process that forks is started once, and holds nothing but the libraries.
"""

import json
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from selftaught.errors import MachineError

# What these decode, of what Pillow and pydicom do themselves, stays in the process.
TRUSTED = ("", "pillow", "pydicom")
# 64 Mpx take GDCM less than 10 seconds.
SECONDS = 60
# Memory that a decoder may take: several copies of the samples, as words of 32 bits.
COPIES, ROOM = 16, 2**28
LENGTH = struct.Struct("<Q")
READY = b"ready"
SERVE = "from selftaught.data.images.decoder_process import serve; serve()"


class Request(NamedTuple):
    """A frame and how it is to be decoded.

    Attributes:
        syntax: UID of the transfer syntax.
        source: the frame, as pydicom takes it.
        plugin: of pydicom.
        options: the description of its pixels, by pydicom's names.
    """

    syntax: str
    source: bytes
    plugin: str
    options: dict[str, Any]

    @property
    def length(self) -> int:
        """Bytes of the samples."""
        one = self.options
        size = one["rows"] * one["columns"] * one["samples_per_pixel"]
        return int(size * max(one["bits_allocated"] // 8, 1))


def decode(request: Request) -> tuple[np.ndarray, str]:
    """Samples of a frame and their PhotometricInterpretation.

    Raises:
        MachineError: a process cannot be started or was ended.
        Exception: the plugin failed.
    """
    return here(request) if request.plugin in TRUSTED else apart(request)


def here(request: Request) -> tuple[np.ndarray, str]:
    """`decode` in this process."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    values, described = get_decoder(UID(request.syntax)).as_array(
        request.source,
        index=0,
        validate=False,
        raw=True,
        decoding_plugin=request.plugin,
        **request.options,
    )
    return values, str(described["photometric_interpretation"])


class _Server:
    """The process that forks; one for each process of ours, as pipes cannot be shared."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None

    def answer(self, request: Request) -> bytes:
        """The reply to a request, which may be what a broken decoder wrote."""
        with self.lock:
            try:
                process = self.process = self.process or _started()
                assert process.stdin is not None and process.stdout is not None
                _send(process.stdin, pickle.dumps(request))
                return _receive(process.stdout)
            except BaseException as error:
                # Interrupted between question and answer: the next answer would be this one's.
                self.end()
                if isinstance(error, EOFError | BrokenPipeError):
                    reason = "the process that decodes DICOM was ended; start the command again"
                    raise MachineError(reason) from None
                raise

    def end(self) -> None:
        """Kill the process."""
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()
        self.process = None


_server = _Server()


def _after_fork() -> None:
    global _server
    # The parent's goes on; to forget it must not count as leaving it behind.
    if _server.process is not None:
        _server.process.returncode = 0
    _server = _Server()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def apart(request: Request) -> tuple[np.ndarray, str]:
    """`decode` in a process of its own; what it replies is believed no further than its size.

    Raises:
        MachineError: see `decode`.
        RuntimeError: the decoder failed, crashed, or took too much memory or time.
    """
    head, _, data = _server.answer(request).partition(b"\n")
    if not head:
        raise RuntimeError("the decoder failed")
    facts = json.loads(head)
    values = np.frombuffer(data, np.dtype(facts["type"])).reshape(facts["shape"])
    one = request.options
    if values.dtype.kind not in "iu" or values.shape[:2] != (one["rows"], one["columns"]):
        raise RuntimeError("the decoder gave no image")
    return values.copy(), str(facts["photometric"])


def _started() -> "subprocess.Popen[bytes]":
    """A new process that serves; a session of its own, so that a Ctrl-C is not its end."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    # Threads do not live on in a fork.
    environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        if _receive(process.stdout) == READY:
            return process
    except EOFError:
        pass
    except BaseException:
        process.kill()
        raise
    process.kill()
    process.wait()
    raise MachineError(f"the process that decodes DICOM cannot be started by {sys.executable}")


def serve() -> None:
    """Fork for each request, until there are no more."""
    import pydicom.pixels  # noqa: F401

    with suppress(ImportError):
        import gdcm  # noqa: F401
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no reply
    _send(target, READY)
    while True:
        try:
            request: Request = pickle.loads(_receive(source))
        except EOFError:
            return
        _send(target, _forked(request))


def _forked(request: Request) -> bytes:
    """The reply of a process that decodes one frame; nothing where it does not end well."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(reading)
            _limit(request.length)
            values, photometric = here(request)
            facts = {"type": values.dtype.str, "shape": values.shape, "photometric": photometric}
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(json.dumps(facts).encode() + b"\n")
                pipe.write(np.ascontiguousarray(values).data)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    most = 4 * request.length + 2**16
    with os.fdopen(reading, "rb") as pipe:
        reply = pipe.read(most + 1)
        if len(reply) > most:
            os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    return b"" if status or len(reply) > most else reply


def _limit(length: int) -> None:
    """Limit the memory and the time of this process, where the system can."""
    with suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + COPIES * length + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _send(pipe: BinaryIO | Any, data: bytes) -> None:
    pipe.write(LENGTH.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def _receive(pipe: BinaryIO | Any) -> bytes:
    head = pipe.read(LENGTH.size)
    length = LENGTH.unpack(head)[0] if len(head) == LENGTH.size else 1
    data: bytes = pipe.read(length)
    if len(head) < LENGTH.size or len(data) < length:
        raise EOFError
    return data
