"""A real archive for tests: Orthanc on loopback, with its DICOMweb plugin."""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

PROGRAM = shutil.which("Orthanc") or shutil.which("orthanc") or "/usr/sbin/Orthanc"
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
MISSING = [
    name
    for name, there in (
        ("orthanc", Path(PROGRAM).exists()),
        ("orthanc-dicomweb", PLUGIN.exists()),
        ("dcmtk", shutil.which("storescu") and shutil.which("dsrdump")),
        ("dicom3tools", shutil.which("dciodvfy")),
    )
    if not there
]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Orthanc:
    """The archive PACS, which knows SELFTAUGHT at a port."""

    def __init__(self, folder: Path, listener_port: int) -> None:
        self.port, self.http = free_port(), free_port()
        folder.mkdir(parents=True)
        settings = {
            "Name": "PACS",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "DicomAet": "PACS",
            "DicomPort": self.port,
            "HttpPort": self.http,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomCheckCalledAet": True,
            "DicomAlwaysAllowStore": True,
            "OverwriteInstances": False,
            "DicomModalities": {"listener": ["SELFTAUGHT", "127.0.0.1", listener_port]},
            "DicomScuTimeout": 20,
            "ConcurrentJobs": 4,
            "Plugins": [str(PLUGIN)],
        }
        (folder / "orthanc.json").write_text(json.dumps(settings))
        self._log = (folder / "log").open("w")
        self._process = subprocess.Popen(
            [PROGRAM, str(folder / "orthanc.json")], stdout=self._log, stderr=self._log
        )
        for _ in range(600):
            try:
                self.get("/system")
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError((folder / "log").read_text())

    def _ask(self, path: str, data: bytes | None = None, method: str | None = None) -> bytes:
        url = f"http://127.0.0.1:{self.http}{path}"
        asked = urllib.request.Request(url, data, method=method)
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return answer.read()

    def get(self, path: str):
        return json.loads(self._ask(path))

    def read(self, path: str) -> bytes:
        return self._ask(path)

    def post(self, path: str, data) -> dict:
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
        return json.loads(self._ask(path, data, "POST"))

    def forward(self, *names: str) -> bool:
        """C-STORE studies or instances to the listener; whether that went well."""
        try:
            self.post("/modalities/listener/store", {"Resources": list(names), "Timeout": 20})
            return True
        except urllib.error.HTTPError:
            return False

    def objects(self, modality: str) -> list[dict]:
        """Tags of all instances of a modality."""
        query = {"Level": "Instance", "Query": {"Modality": modality}, "Expand": True}
        return self.post("/tools/find", query)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._log.close()


@contextmanager
def running(folder: Path, listener_port: int):
    archive = Orthanc(folder, listener_port)
    try:
        yield archive
    finally:
        archive.stop()
