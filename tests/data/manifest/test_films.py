"""Which files of a folder are films; the others are counted and named, or a system's own."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest

from selftaught.cli.main import main
from selftaught.data.manifest import read_manifest
from selftaught.data.manifest.films import list_films
from selftaught.data.manifest.spelling import ManifestWarning
from selftaught.errors import InputError

pydicom = pytest.importorskip("pydicom")

from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian  # noqa: E402

PNG = b"\x89PNG\r\n\x1a\n" + bytes(130)
JPEG, TIFF, OTHER = b"\xff\xd8\xff\xe0" + bytes(140), b"II*\0" + bytes(140), b"hello" * 40
# By the standard's table of SOP classes (PS3.6, annex A).
XRAY, CAPTURE, COMPUTED = "1.1", "7", "1"
DIRECTORY = "1.2.840.10008.1.3.10"


def put(path: Path, content: bytes = PNG) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def dicom(kind: str = COMPUTED, syntax: str = ExplicitVRLittleEndian, bare: bool = False) -> bytes:
    """A file of a storage class; `bare`: the data set alone, without preamble and meta."""
    dataset = Dataset()
    dataset.SOPClassUID = kind if kind.startswith("1.2.") else f"1.2.840.10008.5.1.4.1.1.{kind}"
    dataset.SOPInstanceUID = "1.2.3"
    dataset.PatientName = "Nobody"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.file_meta.TransferSyntaxUID = syntax
    if kind in (XRAY, CAPTURE, COMPUTED):
        generator = np.random.default_rng(0)
        pixels = generator.integers(0, 4096, (40, 40)).astype(np.uint16)
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
        dataset.PixelRepresentation, dataset.PixelData = 0, pixels.tobytes()
        dataset["PixelData"].VR = "OW"
    target = pydicom.filebase.DicomBytesIO()
    dataset.save_as(target, enforce_file_format=True)
    data = target.getvalue()
    return data[data.index(b"\x08\0\x16\0") :] if bare else data


FILMS = {
    "IM000000": dicom(),
    "I1000001": dicom(XRAY),
    "1.2.840.113619.2.5.1762": dicom(CAPTURE),
    "00000001.ima": dicom(),
    "slice.DIC": dicom(),
    "MR.v3": dicom(),
    "bare": dicom(bare=True),
    "bare.dcm": dicom(bare=True),
    "implicit": dicom(syntax=ImplicitVRLittleEndian, bare=True),
    "a.dcm": dicom(),
    "b.DCM": b"damaged, but named so",
    "c.dicom": dicom(),
    "RTIMAGE": dicom("481.1"),
    "private": dicom("1.2.826.0.1.3680043"),
    "d.JPE": JPEG,
    "e.jfif": JPEG,
    "f.TIFF": TIFF,
    "g.png": b"",
    "a b.Png": PNG,
    "thumb.png": PNG,
    "thumbs/1.png": PNG,
    "lost.png": PNG,
    "x.dcm/y.png": PNG,
}


@pytest.mark.parametrize("name", FILMS)
def test_films(tmp_path, name):
    put(tmp_path / "in" / name, FILMS[name])
    assert list_films(tmp_path, "in") == ([f"in/{name}"], {})
    assert list_films(tmp_path / "in") == ([name], {})


LEFT_OUT = {
    "DICOMDIR": (b"old or damaged", "DICOMDIR"),
    "dicomdir": (dicom(DIRECTORY), "DICOMDIR"),
    "DIRFILE": (dicom(DIRECTORY), "DICOMDIR"),
    "directory.dcm": (dicom(DIRECTORY), "DICOMDIR"),
    "RTPLAN": (dicom("481.5"), "DICOM RT Plan"),
    "plan.dcm": (dicom("481.5"), "DICOM RT Plan"),
    "DOSE": (dicom("481.2"), "DICOM RT Dose"),
    "SR000001": (dicom("88.11"), "DICOM Basic Text SR"),
    "report.dcm": (dicom("88.67"), "DICOM X-Ray Radiation Dose SR"),
    "KEY": (dicom("88.59"), "DICOM Key Object Selection Document"),
    "PS000001": (dicom("11.1"), "DICOM Grayscale Softcopy Presentation State"),
    "letter": (dicom("104.1"), "DICOM Encapsulated PDF"),
    "ecg": (dicom("9.1.1"), "DICOM 12-lead ECG Waveform"),
    "seg.dcm": (dicom("66.4"), "DICOM Segmentation"),
    "bare plan": (dicom("481.5", bare=True), "DICOM RT Plan"),
    "README": (OTHER, "without a suffix"),
    "notes.TXT": (OTHER, ".txt"),
    "movie.mp4": (OTHER, ".mp4"),
    "a.bmp": (b"BM" + OTHER, ".bmp"),
    "study.zip": (b"PK\3\4" + OTHER, ".zip"),
    "nothing": (b"", "without a suffix"),
    "short": (b"\x08\0\x16\0UI", "without a suffix"),
    "scan": (PNG, "PNG without its suffix"),
    "scan.2021": (JPEG, "JPEG without its suffix"),
    "scan.png ": (PNG, "PNG without its suffix"),
    "scan.tlf": (TIFF, "TIFF without its suffix"),
    "IM1.bak": (dicom(), "copies of other programs"),
    "a.dcm~": (dicom(), "copies of other programs"),
    "a.dcm.part": (dicom(), "copies of other programs"),
    ".film.png": (PNG, "hidden"),
    ".export": (dicom(), "hidden"),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_no_film_is_counted_and_named(tmp_path, name):
    content, kind = LEFT_OUT[name]
    put(tmp_path / "in" / name, content)
    put(tmp_path / "in" / "film.png")
    assert list_films(tmp_path) == (["in/film.png"], {kind: [f"in/{name}"]})
    with pytest.warns(ManifestWarning) as caught:
        assert len(read_manifest(tmp_path / "in", unlabelled=True).table) == 1
    (line,) = {str(one.message) for one in caught}
    assert line == f'in: left out, being no film: 1 {kind} ("{name}")'


SYSTEMS = [
    "__MACOSX/._film.png",
    "__MACOSX/film.png",
    "._film.png",
    "._IM000000",
    ".DS_Store",
    "Thumbs.db",
    "THUMBS.DB",
    "desktop.ini",
    "Icon\r",
    "@eaDir/film.png/SYNOPHOTO_THUMB_M.jpg",
    "@Recycle/film.png",
    "#recycle/film.png",
    "@__thumb/film.png",
    "$RECYCLE.BIN/S-1-5-21/$R1.png",
    "$Recycle.Bin/film.png",
    "System Volume Information/film.png",
    "lost+found/#12.png",
    ".Trash-1000/files/film.png",
    ".Trashes/film.png",
    ".Spotlight-V100/film.png",
    ".thumbnails/normal/film.png",
    ".git/objects/film.png",
    ".ipynb_checkpoints/film-checkpoint.png",
    ".snapshot/hourly/film.png",
    ".nfs000012",
    "~$notes.docx",
]


@pytest.mark.parametrize("place", ["", "series"])
@pytest.mark.parametrize("name", SYSTEMS)
def test_what_a_system_keeps_is_no_film_and_no_word(tmp_path, name, place):
    put(tmp_path / place / "film.png")
    put(tmp_path / place / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = read_manifest(tmp_path, unlabelled=True).table
    assert table["path"].tolist() == [f"{place}/film.png".lstrip("/")]


def test_links_folders_and_pipes(tmp_path):
    put(tmp_path / "set" / "a.png")
    put(tmp_path / "set" / ".own" / "b.png")
    put(tmp_path / "set" / "Thumbnails" / "a.png")
    put(tmp_path / "far" / "c.png")
    (tmp_path / "set" / "again.png").symlink_to("a.png")
    (tmp_path / "set" / "other.png").symlink_to(tmp_path / "far" / "c.png")
    (tmp_path / "set" / "more").symlink_to(tmp_path / "far")
    (tmp_path / "set" / "IM1").symlink_to("gone")
    (tmp_path / "set" / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "set" / "IM2")
    films = list_films(tmp_path / "set")
    assert films.paths == ["a.png", "other.png"]
    assert films.left_out == {
        "hidden": [".own"],
        "thumbnails": ["Thumbnails"],
        "linked folders": ["more"],
        "links to films beside them": ["again.png"],
        "links to nothing, pipes or devices": films.left_out["links to nothing, pipes or devices"],
    }
    assert sorted(films.left_out["links to nothing, pipes or devices"]) == [
        *("IM1", "IM2", "circle")
    ]


def test_a_long_list_is_cut_and_counted(tmp_path):
    for number in range(5):
        put(tmp_path / f"{number}.txt", OTHER)
    for kind in "abcdefg":
        put(tmp_path / f"x.{kind}", OTHER)
    put(tmp_path / "film.png")
    with pytest.warns(ManifestWarning) as caught:
        read_manifest(tmp_path, unlabelled=True)
    (line,) = {str(one.message) for one in caught}
    assert line.endswith(
        'no film: 5 .txt ("0.txt", "1.txt", "2.txt", ...); 1 .a ("x.a"); 1 .b ("x.b"); '
        '1 .c ("x.c"); 1 .d ("x.d"); 1 .e ("x.e"); 2 of 2 more kinds'
    )


def test_unknown_files_are_not_read_whole(tmp_path, monkeypatch):
    with put(tmp_path / "huge.bin", OTHER).open("r+b") as handle:
        handle.truncate(2**33)
    put(tmp_path / "IM1", dicom()).open("ab").write(bytes(2**20))
    put(tmp_path / "film.png")
    read = []

    def counted(path, *rest, real=open, **more):
        handle = real(path, *rest, **more)
        take = handle.read

        class Handle:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                handle.close()

            def read(self, size=-1):
                read.append(size)
                return take(size)

        return Handle()

    monkeypatch.setattr("builtins.open", counted)
    list_films(tmp_path)
    assert sorted(read) == [132, 132, 2**14]


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path, monkeypatch):
    put(tmp_path / "film.png")
    put(tmp_path / "closed" / "film.png")
    real = os.scandir

    def scandir(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match="closed: cannot be listed: Permission denied; allowed"):
        list_films(tmp_path)


def test_a_system_s_closed_folder_is_passed_over(tmp_path, monkeypatch):
    put(tmp_path / "film.png")
    (tmp_path / "lost+found").mkdir()
    real = os.stat

    def closed(path, *rest, **more):
        if Path(path).parent.name == "lost+found":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "stat", closed)
    assert read_manifest(tmp_path, unlabelled=True).table["path"].tolist() == ["film.png"]


@pytest.mark.parametrize(
    ("normal", "abnormal"),
    [
        ("normal", "abnormal"),
        ("Normal", "Abnormal"),
        ("NORMAL", "ABNORMAL"),
        ("normal ", " abnormal"),
        ("normal\u00a0", "abnormal\u200b"),
        ("ｎormal", "AbNormal"),
    ],
)
def test_classes_are_known_however_they_are_written(tmp_path, normal, abnormal):
    put(tmp_path / normal / "deep" / "IM1", dicom())
    put(tmp_path / normal / "a.png")
    put(tmp_path / abnormal / "b.png")
    put(tmp_path / abnormal / "DICOMDIR", dicom(DIRECTORY))
    put(tmp_path / "README.md", OTHER)
    for more in ({}, {"unlabelled": True}):
        with pytest.warns(ManifestWarning) as caught:
            table = read_manifest(tmp_path, **more).table
        assert table["path"].tolist() == [
            f"{normal}/a.png",
            f"{normal}/deep/IM1",
            f"{abnormal}/b.png",
        ]
        assert table["label"].tolist() == [0, 0, 1]
        assert all((tmp_path / path).is_file() for path in table["path"])
        (line,) = {str(one.message) for one in caught}
        assert "1 DICOMDIR (" in line and '1 outside normal/ and abnormal/ ("README.md")' in line


def test_a_class_alone_keeps_its_label(tmp_path):
    put(tmp_path / "Abnormal" / "a.png")
    assert read_manifest(tmp_path, unlabelled=True).table["label"].tolist() == [1]


@pytest.mark.parametrize("name", ["manifest.csv", "Manifest.CSV", "MANIFEST.csv"])
def test_a_folder_is_read_by_its_list_whatever_its_case(tmp_path, name):
    put(tmp_path / "a.png")
    put(tmp_path / "b.png")
    put(tmp_path / name, b"path,label\na.png,1\n")
    table = read_manifest(tmp_path, unlabelled=True).table
    assert table[["path", "label"]].to_numpy().tolist() == [["a.png", 1]]


def test_two_lists_in_one_folder_are_refused(tmp_path):
    for name in ("Manifest.csv", "MANIFEST.CSV"):
        put(tmp_path / name, b"path\na.png\n")
    with pytest.raises(InputError, match='holds "Manifest.csv" and|holds "MANIFEST.CSV" and'):
        read_manifest(tmp_path)


def test_commands_name_what_they_leave_out(tmp_path, capsys):
    put(tmp_path / "cd" / "ST1" / "IM000000", dicom())
    put(tmp_path / "cd" / "ST1" / "IM000001", dicom(XRAY))
    put(tmp_path / "cd" / "ST1" / "PLAN", dicom("481.5"))
    put(tmp_path / "cd" / "DICOMDIR", dicom(DIRECTORY))
    put(tmp_path / "cd" / "autorun.inf", OTHER)
    words = ["prepare", str(tmp_path / "cd"), "--out", str(tmp_path / "set"), "--workers", "1"]
    words += ["--carrier", "none", "--polarity", "none", "--mask", "none", "--sheets", "0"]
    with pytest.warns(ManifestWarning) as caught:
        assert main(words) == 0
    assert "2 of 2 images prepared, 0 refused" in capsys.readouterr().out
    (line,) = {str(one.message) for one in caught}
    for part in (
        '1 DICOMDIR ("DICOMDIR")',
        '1 DICOM RT Plan ("ST1/PLAN")',
        '1 .inf ("autorun.inf")',
    ):
        assert part in line
    table = read_manifest(tmp_path / "set").table
    assert table["source"].tolist() == ["ST1/IM000000", "ST1/IM000001"]
