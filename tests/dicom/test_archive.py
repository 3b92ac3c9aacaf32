"""The listener beside a real archive, Orthanc: there and back, killed on the way."""

import multiprocessing
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.dicom import orthanc
from tests.dicom.films import PATIENT, film, save

pytestmark = pytest.mark.skipif(
    bool(orthanc.MISSING), reason=f"needs {', '.join(orthanc.MISSING)}: apt-get install them"
)


def listen(arguments: list[str], log: Path) -> None:
    """The command in a process of its own."""
    from selftaught.cli.main import main
    from tests import thin

    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    thin.start()
    raise SystemExit(main(["listen", *arguments]))


class Service:
    """`selftaught listen`, which may be killed and started again."""

    def __init__(self, folder: Path, model: Path, port: int, archive: int, *more: str) -> None:
        self.log = folder / "log"
        self.spool = folder / "spool"
        self.arguments = [str(model), "--port", str(port), "--to", f"PACS@127.0.0.1:{archive}"]
        self.arguments += ["--from", "PACS,STORESCU", "--quiet", "0.3", *more]
        self.arguments += ["--spool", str(self.spool)]
        # Imports once, then each start is a fork of that process.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.dicom.preloaded"])
        self._process = None

    def start(self) -> "Service":
        before = self.text().count("listening")
        self._process = self._context.Process(target=listen, args=(self.arguments, self.log))
        self._process.start()
        while self.text().count("listening") == before:
            assert self._process.is_alive(), self.text()
            time.sleep(0.05)
        return self

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def kill(self, how: int = signal.SIGKILL) -> int:
        os.kill(self._process.pid, how)
        self._process.join(60)
        return self._process.exitcode

    def waiting(self) -> bool:
        return any(any((self.spool / place).glob("[!.]*")) for place in ("in", "out"))


def until(done, seconds=120):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "never came"
        time.sleep(0.1)


@pytest.mark.parametrize(
    "studies, kills",
    [(12, 2), pytest.param(1000, 5, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
)
def test_studies_go_there_and_back_killed_on_the_way(tmp_path, model, capsys, studies, kills):
    port, chance = orthanc.free_port(), random.Random(3)
    films = [film(number) for number in range(studies)]
    with orthanc.running(tmp_path / "archive", port) as archive:
        service = Service(tmp_path, model, port, archive.port).start()
        paths = [save(tmp_path / f"{number}.dcm", one) for number, one in enumerate(films)]
        to = ["storescu", "-aec", "SELFTAUGHT", "127.0.0.1", str(port), str(paths[0])]
        assert subprocess.run(to).returncode == 0  # the archive never saw its film
        for path in paths[1:]:
            archive.post("/instances", path.read_bytes())
        clock = Clock(archive)
        left = archive.get("/studies")
        deaths = sorted(chance.sample(range(1, len(left)), kills))
        for number, study in enumerate(left):
            if number in deaths:
                time.sleep(chance.uniform(0, 1.2))
                assert service.kill() == -signal.SIGKILL
                assert not archive.forward(study), "nobody is there"
                service.start()
            assert archive.forward(study)
            clock.sent(study)
        until(lambda: clock.look() and not service.waiting(), 900)
        with capsys.disabled():
            print(f"\n{studies} studies, {kills} kills: {clock.figures()}")
        check_results(archive, {str(one.SOPInstanceUID) for one in films})
        # All of it comes back, our own objects too: nothing new follows, and nothing is kept.
        before = service.text()
        assert all(archive.forward(study) for study in archive.get("/studies"))
        time.sleep(1.0)
        assert not service.waiting() and service.text() == before
        assert {len(archive.objects(one)) for one in ("SR", "OT")} == {studies}
        assert service.kill(signal.SIGTERM) == 143
        names = " ".join(map(str, service.spool.rglob("*")))
        assert PATIENT not in service.text() + names and "Geheim" not in service.text() + names
        assert "Traceback" not in service.text()


class Clock:
    """When a study went to the listener, and when its report was in the archive.

    Args:
        archive: which lists what comes in, in order.
    """

    def __init__(self, archive) -> None:
        self.archive, self.start = archive, time.monotonic()
        # From the beginning: the first report may be there before the last film is.
        self.went, self.came, self.last = {}, {}, 0

    def sent(self, study: str) -> None:
        self.went[study] = time.monotonic()
        self.look()

    def look(self) -> bool:
        """Note what came; whether there is a report for each study."""
        news = self.archive.get(f"/changes?since={self.last}&limit=1000")
        self.last = news["Last"]
        for change in news["Changes"]:
            if change["ChangeType"] == "NewSeries":
                series = self.archive.get(f"/series/{change['ID']}")
                if series["MainDicomTags"]["Modality"] == "SR":
                    self.came.setdefault(series["ParentStudy"], time.monotonic())
        return self.went.keys() <= self.came.keys() and news["Done"]

    def figures(self) -> str:
        took = sorted(max(0.0, self.came[one] - when) for one, when in self.went.items())
        p50, p95 = (took[min(len(took) - 1, int(share * len(took)))] for share in (0.5, 0.95))
        rate = len(took) / (max(self.came.values()) - self.start)
        return f"{rate:.1f} studies/s; from stored to reported p50 {p50:.1f} s, p95 {p95:.1f} s"


def check_results(archive, films):
    """One report and one capture of each film; the archive serves them by DICOMweb."""
    for modality in ("SR", "OT"):
        found = archive.get(f"/dicom-web/instances?Modality={modality}&limit=5000")
        assert len(found) == len(films) == len(archive.objects(modality))
    sources = []
    for one in archive.objects("SR"):
        report = archive.get(f"/instances/{one['ID']}/simplified-tags")
        evidence = report["CurrentRequestedProcedureEvidenceSequence"][0]
        series = evidence["ReferencedSeriesSequence"][0]["ReferencedSOPSequence"]
        sources += [item["ReferencedSOPInstanceUID"] for item in series]
    assert sorted(sources) == sorted(films)
    first = archive.get("/dicom-web/instances?Modality=SR&limit=1")[0]
    study, uid = (first[tag]["Value"][0] for tag in ("0020000D", "00080018"))
    series = first["0020000E"]["Value"][0]
    where = f"/dicom-web/studies/{study}/series/{series}/instances/{uid}"
    assert b"research, not a diagnosis" in archive.read(where)
