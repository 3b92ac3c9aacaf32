"""C-ECHO and C-STORE: the listener that films come to, the sender that results go out by."""

import threading
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, UID_dictionary
from pynetdicom import AE, build_context, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    EnhancedSRStorage,
    SecondaryCaptureImageStorage,
    Verification,
)

from selftaught.data.images.dicom_codestream import CODECS
from selftaught.data.images.dicom_pixels import DEFLATED, IN_FRAGMENTS, NATIVE
from selftaught.dicom.film import CLASSES
from selftaught.dicom.spool import Spool
from selftaught.errors import InputError, MachineError

# Deflated ones may inflate to any size before they are looked at; senders have others.
SYNTAXES = [uid for uid in (*NATIVE, *CODECS) if uid not in (DEFLATED, IN_FRAGMENTS)]
PLAIN = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
# PS3.4 B.2.3.
SUCCESS, NO_ROOM, WRONG_OBJECT, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xC000
FIRST_DELAY, LONGEST_DELAY = 1.0, 300.0  # seconds between two tries


class Address(NamedTuple):
    """Where an application entity listens."""

    aet: str
    host: str
    port: int

    @classmethod
    def of(cls, text: str, option: str = "to") -> "Address":
        """`AET@host:port`, given by an option.

        Raises:
            InputError: it is none.
        """
        aet, _, rest = text.partition("@")
        host, _, port = rest.rpartition(":")
        if not (host and port.isdecimal() and 0 < int(port) < 2**16):
            allowed = "AET@host:port, such as PACS@10.0.0.5:104"
            raise InputError(f"{option} is {text!r}; allowed: {allowed}")
        return cls(title(option, aet), host.strip("[]"), int(port))


def title(option: str, text: str) -> str:
    """An application entity's title (PS3.5 6.2: 1 to 16 characters).

    Raises:
        InputError: it is none.
    """
    fine = text.isascii() and text.isprintable() and "\\" not in text
    if not (fine and 0 < len(text.strip()) <= 16):
        raise InputError(f"{option} is {text!r}; allowed: an AE title of 1 to 16 ASCII characters")
    return text.strip()


def passed_over() -> list[str]:
    """Storage classes that are taken with success and ignored.

    All that is no image, and captures: an archive that forwards whole studies forwards our own
    results too.
    """
    names = {uid: facts[0] for uid, facts in UID_dictionary.items() if facts[1] == "SOP Class"}
    objects = [uid for uid, one in names.items() if one.endswith("Storage") and "Image" not in one]
    return [*objects, *(uid for uid, one in names.items() if "Secondary Capture" in one)]


class Listener:
    """Takes films of known senders into the spool; never waits for the scorer.

    Args:
        spool: for the films.
        aet: own title, by which it must be called.
        host: address to bind.
        port: to bind; 0 = a free one.
        senders: titles that may call.
    """

    def __init__(
        self, spool: Spool, aet: str, host: str, port: int, senders: Sequence[str]
    ) -> None:
        self.spool, self.where = spool, (host, port)
        self.taken = 0
        self.entity = AE(ae_title=aet)
        self.entity.require_called_aet = True
        self.entity.require_calling_aet = list(senders)
        self.entity.add_supported_context(Verification)
        for uid in CLASSES:
            self.entity.add_supported_context(uid, SYNTAXES)
        for uid in passed_over():
            self.entity.add_supported_context(uid, SYNTAXES)

    def start(self) -> str:
        """Listen from now on.

        Returns:
            Where, and for whom.

        Raises:
            InputError: the address cannot be bound.
        """
        try:
            handlers: list[Any] = [(evt.EVT_C_STORE, self._store)]
            server = self.entity.start_server(self.where, block=False, evt_handlers=handlers)
        except (OSError, OverflowError) as error:
            host, port = self.where
            raise InputError(
                f"host, port: {host}:{port} cannot be listened on: {error}; allowed: an address of "
                "this machine and a port that is free"
            ) from error
        assert server is not None  # as it does not block
        self.where = server.server_address[:2]
        entity, (host, port) = self.entity, self.where
        senders = ", ".join(entity.require_calling_aet)
        return f"listening as {entity.ae_title} on {host}:{port} for {senders}"

    def stop(self) -> None:
        """Listen no more; what was not answered with success stays with its sender."""
        self.entity.shutdown()

    def _store(self, event: Any) -> int:
        """Keep what a peer sends; the status to answer with."""
        uid = str(event.request.AffectedSOPInstanceUID)
        if event.request.AffectedSOPClassUID not in CLASSES:
            return SUCCESS
        try:
            data = event.encoded_dataset()
            tags: list[Any] = ["StudyInstanceUID", "SOPInstanceUID"]
            head = dcmread(BytesIO(data), stop_before_pixels=True, specific_tags=tags)
            study, stated = str(head.StudyInstanceUID), str(head.SOPInstanceUID)
        except Exception:  # any header that lies
            return NOT_UNDERSTOOD
        if not uid or stated != uid:
            return WRONG_OBJECT
        try:
            self.taken += self.spool.take(uid, study, data)
        except Exception:  # whatever the disk did, the film is not ours
            return NO_ROOM
        return SUCCESS


class Sender(threading.Thread):
    """Sends the spool's results, again and again until the archive has them.

    Args:
        spool: with the results.
        aet: own title.
        to: the archive.
        report: called with a line where something changes.
    """

    def __init__(
        self, spool: Spool, aet: str, to: Address, report: Callable[[str], object] = print
    ) -> None:
        super().__init__(name="selftaught-sends", daemon=True)
        self.spool, self.to, self._report = spool, to, report
        self.sent = 0
        self._over = threading.Event()
        self._trouble = ""
        self.entity = _caller(aet)
        classes = EnhancedSRStorage, SecondaryCaptureImageStorage
        self._contexts = [build_context(uid, list(map(str, PLAIN))) for uid in classes]
        self._contexts.append(build_context(SecondaryCaptureImageStorage, str(RLELossless)))

    def stop(self) -> None:
        """End after the object that is on its way."""
        self._over.set()
        self.join()

    def run(self) -> None:
        """Until `stop`."""
        delay = 0.1
        while not self._over.wait(delay):
            trouble, before = "", self.sent
            if keys := self.spool.outbox():
                try:
                    trouble = self._send(keys)
                except MachineError as error:
                    trouble = str(error)
                except Exception as error:  # this thread has no successor
                    trouble = f"sending failed ({type(error).__name__}); results are sent again"
            if self.sent > before:
                self._report(f"{self.sent} results sent")
            if trouble != self._trouble:
                self._report(trouble or f"results go to {self.to.aet} again")
                self._trouble = trouble
            delay = min(max(FIRST_DELAY, 2 * delay), LONGEST_DELAY) if trouble else 0.1

    def _send(self, keys: Sequence[str]) -> str:
        """Send results by one association; what went wrong, "" for nothing."""
        to = self.to
        link = self.entity.associate(to.host, to.port, contexts=self._contexts, ae_title=to.aet)
        if not link.is_established:
            return f"{to.aet} {_silence(link)}; results wait and are sent again"
        refused = 0
        try:
            for key in keys:
                if self._over.is_set():
                    break
                if not link.is_established:
                    return f"{to.aet} ended the association; results wait and are sent again"
                if all([_stored(link, path) for path in self.spool.objects(key)]):
                    self.spool.sent(key)
                    self.sent += 1
                else:
                    refused += 1
        finally:
            if link.is_established:
                link.release()
        return f"{to.aet} refuses {refused} results; they are sent again" if refused else ""


def _caller(aet: str) -> AE:
    entity = AE(ae_title=aet)
    entity.acse_timeout = entity.connection_timeout = 10
    return entity


def _silence(link: Any) -> str:
    return "rejects the association" if link.is_rejected else "does not answer"


def echo(to: Address, aet: str) -> str:
    """That an application entity answers C-ECHO, in words.

    Raises:
        InputError: it does not.
    """
    verification = [build_context(Verification)]
    link = _caller(aet).associate(to.host, to.port, contexts=verification, ae_title=to.aet)
    answer = link.send_c_echo() if link.is_established else None
    if not answer or answer.Status != SUCCESS:
        raise InputError(f"{to.aet} at {to.host}:{to.port} {_silence(link)}; called by {aet}")
    link.release()
    return f"{to.aet} at {to.host}:{to.port} answers C-ECHO"


def _stored(link: Any, path: Path) -> bool:
    """Send an object, unpacked where the archive does not take it packed; whether it has it."""
    one: Dataset = dcmread(path)
    try:
        try:
            answer = link.send_c_store(one)
        except ValueError:  # no presentation context for its transfer syntax
            if not one.file_meta.TransferSyntaxUID.is_compressed:
                return False
            one.decompress(generate_instance_uid=False)
            answer = link.send_c_store(one)
    except (RuntimeError, ValueError):  # the association has ended, or takes no such objects
        return False
    status = int(answer.Status) if "Status" in answer else -1
    return status == SUCCESS or status >> 12 == 0xB  # 0xBxxx: stored, with a warning
