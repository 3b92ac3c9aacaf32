"""The listener over real associations: who may call, what is kept, what is answered."""

import subprocess
import threading
from types import SimpleNamespace

import pytest
from pydicom import dcmread
from pynetdicom import AE, build_context

from selftaught.dicom import spool
from selftaught.dicom.folder import saved
from selftaught.dicom.network import Address, Listener, Sender, passed_over, title
from selftaught.dicom.spool import Spool, key_of
from selftaught.errors import InputError
from tests.dicom.films import CR, NAME, PATIENT, film

SR, SC = "1.2.840.10008.5.1.4.1.1.88.22", "1.2.840.10008.5.1.4.1.1.7"
MG = "1.2.840.10008.5.1.4.1.1.1.2"


@pytest.fixture
def listening(tmp_path, monkeypatch):
    """A listener with its spool, and a function that stores objects as PACS and gives statuses."""
    monkeypatch.setattr(spool, "RESERVE", 0)
    place = Spool(tmp_path / "spool", "model")
    listener = Listener(place, "SELFTAUGHT", "127.0.0.1", 0, ["PACS"])
    listener.start()

    def store(*objects, aet="PACS", called="SELFTAUGHT"):
        entity = AE(ae_title=aet)
        contexts = [build_context(uid) for uid in {one.SOPClassUID for one in objects} or {CR}]
        link = entity.associate(*listener.where, contexts=contexts, ae_title=called)
        if not link.is_established:
            return None
        try:
            return [_status(link, one) for one in objects]
        finally:
            link.release()

    yield listener, place, store
    listener.stop()


def _status(link, one):
    try:
        return link.send_c_store(one).Status
    except ValueError:  # its class was not accepted
        return None


def kept(place):
    return sorted((place.folder / "in").glob("[!.]*"))


def test_films_of_known_callers_are_kept_under_names_that_tell_nothing(listening):
    listener, place, store = listening
    one = film(1)
    assert store(one) == [0x0000]
    (path,) = kept(place)
    assert dcmread(path).PixelData == one.PixelData and dcmread(path).PatientName == NAME
    assert one.SOPInstanceUID not in path.name and one.StudyInstanceUID not in path.name
    assert store(one) == [0x0000]  # again: taken, and nothing changes
    assert kept(place) == [path] and listener.taken == 1
    assert store(film(2), aet="EVIL") is None and store(film(2), called="OTHER") is None
    assert kept(place) == [path]


def test_reports_and_captures_are_taken_with_success_and_ignored(listening):
    _, place, store = listening
    others = [film(1, SOPClassUID=uid) for uid in (SR, SC)]
    assert store(*others) == [0x0000, 0x0000]
    assert not kept(place)
    assert {SR, SC, "1.2.840.10008.5.1.4.1.1.11.1"} <= set(passed_over())


def test_what_is_no_film_of_ours_is_refused(listening):
    listener, place, store = listening
    assert store(film(1, SOPClassUID=MG), film(2)) == [None, 0x0000]
    lacking = film(3, StudyInstanceUID=None)
    assert store(lacking) == [0xC000]
    assert len(kept(place)) == 1
    # A message that names another object than it carries, which no sound sender makes.
    named = SimpleNamespace(AffectedSOPClassUID=CR, AffectedSOPInstanceUID="1.2.3")
    event = SimpleNamespace(request=named, encoded_dataset=lambda: saved(film(4)))
    assert listener._store(event) == 0xA900 and len(kept(place)) == 1


def test_success_is_answered_when_the_film_is_on_the_disk(listening, monkeypatch):
    """fsync of file and folder come before the answer, in this order, for each film."""
    _, place, store = listening
    events = []
    from selftaught import files

    for name in ("fsync_file", "fsync_folder"):
        real = getattr(files, name)
        monkeypatch.setattr(files, name, lambda p, r=real, n=name: (r(p), events.append((n, p)))[0])
    assert store(film(1)) == [0x0000]
    assert [name for name, _ in events] == ["fsync_file", "fsync_folder"]
    assert events[1][1] == place.folder / "in"
    monkeypatch.setattr(files, "fsync_file", lambda path: (_ for _ in ()).throw(OSError(5, "EIO")))
    assert store(film(2)) == [0xA700]
    assert len(kept(place)) == 1


def test_a_full_disk_refuses_and_loses_nothing(tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    monkeypatch.setattr(spool, "free_bytes", lambda path: -1)  # unknown: the write itself fails
    try:
        place = Spool(disk / "spool", "model")
        listener = Listener(place, "SELFTAUGHT", "127.0.0.1", 0, ["PACS"])
        listener.start()
        link = AE("PACS").associate(
            *listener.where, contexts=[build_context(CR)], ae_title="SELFTAUGHT"
        )
        films = [film(number) for number in range(12)]
        answers = [link.send_c_store(one).Status for one in films]
        link.release()
        listener.stop()
        assert set(answers) == {0x0000, 0xA700} and answers[0] == 0x0000
        taken = {key_of(one.SOPInstanceUID) for one, a in zip(films, answers, strict=True) if not a}
        assert {path.name.split(".")[1] for path in kept(place)} == taken
        pixels = {key_of(one.SOPInstanceUID): one.PixelData for one in films}
        for path in kept(place):
            assert dcmread(path).PixelData == pixels[path.name.split(".")[1]]
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_room_is_left_for_results(listening, monkeypatch):
    _, place, store = listening
    monkeypatch.setattr(spool, "RESERVE", 2**62)
    assert store(film(1)) == [0xA700]
    assert not kept(place)


def test_a_spool_is_one_process_and_one_models(tmp_path):
    first = Spool(tmp_path / "spool", "model")
    with pytest.raises(InputError, match="in use"):
        Spool(tmp_path / "spool", "model")
    first.close()
    with pytest.raises(InputError, match="another model"):
        Spool(tmp_path / "spool", "other")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    with pytest.raises(InputError, match="holds files"):
        Spool(tmp_path / "mine", "model")


def test_results_are_sent_until_the_archive_has_them(tmp_path, scorer):
    """Its archive is away, then out of memory for one object, then takes; RLE it takes not."""
    from pynetdicom import evt

    place = Spool(tmp_path / "spool", "model")
    place.take("1.2", "1.1", saved(film(1)))
    (path,) = place.ready(0)
    (result,) = scorer([scorer.read(path)])
    place.settle(path, result.facts(), [saved(one) for one in result.objects])
    received, answers, lines = [], [0xA700], []

    def take(event):
        status = answers.pop() if answers else 0x0000
        if not status:
            received.append((event.dataset.SOPInstanceUID, event.dataset.get("Rows")))
        return status

    archive = AE("PACS")
    for context in (SR, SC):
        archive.add_supported_context(context)  # uncompressed alone
    server = archive.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, take)]
    )
    done = threading.Event()
    sender = Sender(place, "SELFTAUGHT", Address("PACS", *server.server_address), lines.append)
    server_of = sender.to
    sender.to = Address("PACS", "127.0.0.1", 1)  # nobody there
    sender.start()
    while not lines:
        done.wait(0.05)
    sender.to = server_of
    while place.outbox():
        done.wait(0.05)
    sender.stop()
    archive.shutdown()
    assert {uid for uid, _ in received} == {one.SOPInstanceUID for one in result.objects}
    assert any(rows for _, rows in received)
    text = " ".join(lines)
    assert "does not answer" in text and "refuses 1" in text and "1 results sent" in text
    assert PATIENT not in text and result.film.uid not in text
    assert place.known(key_of("1.2")) and not place.take("1.2", "1.1", b"again")


def test_doctor_calls_an_archive(listening, capsys):
    from selftaught.cli.main import main

    listener, _, _ = listening
    at = f"{listener.where[0]}:{listener.where[1]}"
    listener.entity.require_calling_aet = ["SELFTAUGHT"]
    assert main(["doctor", "--dicom", f"SELFTAUGHT@{at}"]) == 0
    assert "answers C-ECHO" in capsys.readouterr().out
    assert main(["doctor", "--dicom", f"OTHER@{at}"]) == 2
    assert "rejects the association" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["PACS", "PACS@host", "@h:1", "P@h:0", "P@h:99999", "A" * 17 + "@h:1"]
)
def test_addresses_are_checked(text):
    with pytest.raises(InputError, match="allowed"):
        Address.of(text)


def test_addresses_and_titles():
    assert Address.of("PACS@[::1]:104") == ("PACS", "::1", 104)
    assert title("aet", " A B ") == "A B"
