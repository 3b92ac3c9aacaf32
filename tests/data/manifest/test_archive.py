"""A ZIP or a CD's DICOMDIR as the source of films; what is hostile in a ZIP is refused unread."""

import os
import stat
import warnings
import zipfile
from pathlib import Path

import pytest

from selftaught.cli.main import main
from selftaught.data.manifest import archive, read_manifest
from selftaught.data.manifest.spelling import ManifestWarning
from selftaught.errors import InputError, MachineError
from tests.data.manifest.test_films import COMPUTED, DIRECTORY, OTHER, PNG, XRAY, dicom, put

CD = {
    "DICOMDIR": dicom(DIRECTORY),
    "ST1/IM000000": dicom(COMPUTED),
    "ST1/IM000001": dicom(XRAY),
    "ST1/SR000001": dicom("88.11"),
    "ST2/PS000001": dicom("11.1"),
    "autorun.inf": OTHER,
}
LEFT = (
    '1 .inf ("autorun.inf")',
    '1 DICOM Basic Text SR ("ST1/SR000001")',
    '1 DICOM Grayscale Softcopy Presentation State ("ST2/PS000001")',
    '1 DICOMDIR ("DICOMDIR")',
)


def packed(path: Path, files: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", kind) as target:
        warnings.simplefilter("ignore")  # of names that stand twice
        for name, content in files.items():
            target.writestr(name, content)
    return path


def read(path: Path) -> tuple[list[str], str]:
    """Paths of the films, and the warnings as one text."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        manifest = read_manifest(path, unlabelled=True)
    assert all((manifest.root / one).is_file() for one in manifest.table["path"])
    return manifest.table["path"].tolist(), "\n".join(str(one.message) for one in caught)


def beside(path: Path) -> list[str]:
    return sorted(name for name in os.listdir(path.parent) if name != path.name)


@pytest.mark.parametrize("source", ["", "DICOMDIR", ".zip", "inside.zip"])
def test_prepare_takes_every_film_of_a_cd(tmp_path, capsys, source):
    for name, content in CD.items():
        put(tmp_path / "cd" / name, content)
    place = tmp_path / "cd" / source
    if source.endswith(".zip"):
        top = "CD/" if source == "inside.zip" else ""
        place = packed(tmp_path / "cd.zip", {top + name: data for name, data in CD.items()})
    words = ["prepare", str(place), "--out", str(tmp_path / "set"), "--workers", "1"]
    words += ["--carrier", "none", "--polarity", "none", "--mask", "none", "--sheets", "0"]
    with pytest.warns(ManifestWarning) as caught:
        assert main(words) == 0
    assert "2 of 2 images prepared, 0 refused" in capsys.readouterr().out
    line = next(str(one.message) for one in caught if "left out" in str(one.message))
    assert "\n" not in line and all(part in line for part in LEFT)
    sources = read_manifest(tmp_path / "set").table["source"].tolist()
    assert sources == ["ST1/IM000000", "ST1/IM000001"]
    assert main(words) == 0


def test_a_cd_is_not_prepared_into_itself(tmp_path):
    put(tmp_path / "DICOMDIR", dicom(DIRECTORY))
    put(tmp_path / "IM1", dicom())
    words = ["prepare", str(tmp_path / "DICOMDIR"), "--out", str(tmp_path / "set")]
    assert main(words) == 2


def test_an_archive_is_unpacked_once_and_again_when_it_has_changed(tmp_path):
    path = packed(tmp_path / "a.zip", {"normal/a.png": PNG, "abnormal/b.png": PNG})
    paths, text = read(path)
    assert paths == ["normal/a.png", "abnormal/b.png"]
    (folder,) = beside(path)
    assert f"unpacked to {folder} beside it" in text and folder.startswith("a.zip.unpacked-")
    stood = (tmp_path / folder / "normal" / "a.png").stat().st_mtime_ns
    assert read(path) == (paths, "")
    assert read_manifest(path).table["label"].tolist() == [0, 1]
    assert (tmp_path / folder / "normal" / "a.png").stat().st_mtime_ns == stood
    packed(path, {"normal/a.png": PNG, "abnormal/c.png": PNG})
    assert read(path)[0] == ["normal/a.png", "abnormal/c.png"]


def test_two_ranks_unpack_at_once(tmp_path, monkeypatch):
    path, real = packed(tmp_path / "a.zip", {"a.png": PNG, "b.png": PNG}), os.rename

    def rename(part, folder):
        monkeypatch.setattr(os, "rename", real)
        archive.unpacked(path)  # another is first
        real(part, folder)

    monkeypatch.setattr(os, "rename", rename)
    assert read(path)[0] == ["a.png", "b.png"]
    assert len(beside(path)) == 1


NAMES = ["../a.png", "x/../../a.png", "/etc/a.png", "x//a.png", "./a.png", "C:/a.png", "x\\a.png"]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_out_are_refused(tmp_path, name):
    path = packed(tmp_path / "a.zip", {"film.png": PNG, name: PNG})
    with pytest.raises(InputError, match="leads out of the archive") as caught:
        read_manifest(path, unlabelled=True)
    assert "\n" not in str(caught.value) and beside(path) == []


def linked(path: Path) -> None:
    info = zipfile.ZipInfo("a.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as target:
        target.writestr(info, "/etc/passwd")


def twice(path: Path) -> None:
    packed(path, {"a.png": PNG})
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as target:
        warnings.simplefilter("ignore")
        target.writestr("a.png", PNG)


def changed(old: bytes, new: bytes):
    def change(path: Path) -> None:
        data = packed(path, {"a.png": PNG}, zipfile.ZIP_STORED).read_bytes()
        assert old in data
        path.write_bytes(data.replace(old, new))

    return change


def flagged(path: Path) -> None:
    data = bytearray(packed(path, {"a.png": PNG}).read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)


def method(path: Path) -> None:
    data = bytearray(packed(path, {"a.png": PNG}).read_bytes())
    data[data.index(b"PK\1\2") + 10] = data[8] = 99
    path.write_bytes(data)


def bomb(path: Path) -> None:
    packed(path, {"a.png": bytes(2**27)})


def lying(path: Path) -> None:
    """More data than the list of files states."""
    data = bytearray(packed(path, {"a.png": PNG + bytes(2**20)}).read_bytes())
    at = data.index(b"PK\1\2") + 24
    data[at : at + 4] = (100).to_bytes(4, "little")
    path.write_bytes(data)


FAULTS = {
    "link": (linked, "is a link"),
    "twice": (twice, "stands in it twice"),
    "file and folder": (lambda path: packed(path, {"a": PNG, "a/b.png": PNG}), "cannot both stand"),
    "control": (lambda path: packed(path, {"a\n.png": PNG}), "control characters"),
    "encrypted": (flagged, "is encrypted"),
    "method": (method, "packed in a way that is not read"),
    "bomb": (bomb, "would fill the disk"),
    "lying": (lying, "damaged ZIP"),
    "flipped": (changed(PNG, PNG[:-1] + b"\1"), "damaged ZIP"),
    "no zip": (lambda path: path.write_bytes(OTHER), "damaged ZIP"),
    "cut": (lambda path: path.write_bytes(packed(path, {"a": PNG}).read_bytes()[:-30]), "damaged"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_hostile_and_damaged_archives_leave_one_line_and_no_file(tmp_path, fault):
    make, words = FAULTS[fault]
    path = tmp_path / "a.zip"
    make(path)
    with pytest.raises(InputError, match=words) as caught:
        read_manifest(path, unlabelled=True)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert beside(path) == []


def test_a_file_above_its_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_BYTES", 100)
    with pytest.raises(InputError, match="more than 100"):
        read_manifest(packed(tmp_path / "a.zip", {"a.png": PNG}), unlabelled=True)


def test_a_disk_without_room_is_the_machine_s_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "free_bytes", lambda path: 10)
    path = packed(tmp_path / "a.zip", {"a.png": PNG})
    with pytest.raises(MachineError, match="disk full"):
        read_manifest(path, unlabelled=True)
    assert beside(path) == []


def test_an_archive_where_nothing_can_be_written(tmp_path, monkeypatch):
    def refused(**_: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(archive.tempfile, "mkdtemp", refused)
    with pytest.raises(InputError, match="cannot be unpacked beside it: Permission denied"):
        read_manifest(packed(tmp_path / "a.zip", {"a.png": PNG}), unlabelled=True)
