"""`selftaught prepare` as a whole: bytes, kills, broken and hostile files, DICOM."""

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from films import stop_after, write_broken, write_films

from selftaught.cli.main import main
from selftaught.data.images.contrast import contrast_limits
from selftaught.data.images.decode import read_grey
from selftaught.data.images.pack import Pack
from selftaught.data.manifest import read_manifest
from selftaught.data.manifest.spelling import ManifestWarning
from selftaught.data.prepare import job
from selftaught.data.prepare.config import PrepareConfig
from selftaught.data.prepare.geometry import shrink
from selftaught.data.prepare.job import prepare
from selftaught.errors import InputError, MachineError
from tests.data.images.dicom_files import ExplicitVRLittleEndian, with_nested
from tests.data.images.measure import PEAK

ROOT = Path(__file__).resolve().parents[3]
DICOM = ROOT / ".." / "shared" / "data" / "dicom"
# Names, texts, numbers, UIDs, dates and times: whatever may point to a person.
IDENTIFYING = ("PN", "LO", "SH", "ST", "LT", "UT", "UI", "DA", "TM", "DT", "AE", "AS")
PLAIN = PrepareConfig(carrier="none", polarity="none", mask="none", workers=1, sheets=0)
FULL = PrepareConfig(size=96, workers=1, given_mask=False, sheets=1)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_films(tmp_path_factory.mktemp("films") / "set", 20)


@pytest.fixture(scope="module")
def whole(films: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a set of ten shards that one worker made and nothing stopped."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(job, "SHARD_IMAGES", 2)
        prepare(films, out, FULL)
    return content(out)


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def quarantined(out: Path) -> dict[str, str]:
    with (out / "quarantine.csv").open(newline="") as handle:
        return {row["path"]: row["reason"] for row in csv.DictReader(handle)}


def test_without_rules_pixels_stay(films: Path, tmp_path: Path) -> None:
    summary = prepare(films, tmp_path / "out", PLAIN)
    assert (summary.images, summary.refused) == (20, 0)
    source, made = read_manifest(films), read_manifest(tmp_path / "out" / "manifest.csv")
    pack = Pack(tmp_path / "out" / "pack")
    pack.verify()
    for slot in range(20):
        grey = read_grey(source.root / source.table["path"][slot])
        np.testing.assert_array_equal(pack.image(slot), grey)
        np.testing.assert_array_equal(read_grey(made.root / made.table["path"][slot]), grey)
        assert pack.limits(slot) == contrast_limits(grey, 1.0)
    for column in ("label", "patient", "study", "body_part", "kind"):
        assert made.table[column].tolist() == source.table[column].tolist()
    assert made.table["source"].tolist() == source.table["path"].tolist()


def test_a_column_that_the_set_writes_itself_is_named(films: Path, tmp_path: Path) -> None:
    """A group of such a name would be the films' own names: each would be alone."""
    table = pd.read_csv(films, dtype=str).assign(source="clinic", quad=1, age=7)
    table.to_csv(films.with_name("named.csv"), index=False)
    with pytest.warns(ManifestWarning, match='named.csv: "source", "quad": the set has its own'):
        prepare(films.with_name("named.csv"), tmp_path / "out", PLAIN)
    made = read_manifest(tmp_path / "out").table
    assert made["source"].tolist() == table["path"].tolist() and set(made["age"]) == {"7"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", ManifestWarning)
        prepare(tmp_path / "out" / "manifest.csv", tmp_path / "again", PLAIN)


def test_films_are_resized_and_given_masks_follow(films: Path, tmp_path: Path) -> None:
    config = PrepareConfig(size=64, carrier="none", polarity="none", workers=1, sheets=0)
    prepare(films, tmp_path / "out", config)
    source, pack = read_manifest(films), Pack(tmp_path / "out" / "pack")
    for slot in range(20):
        grey = read_grey(source.root / source.table["path"][slot])
        image, mask = pack.image(slot), pack.mask(slot)
        assert max(image.shape) == 64 and image.dtype == grey.dtype
        np.testing.assert_array_equal(image, shrink(grey, 64))
        truth = read_grey(source.root / source.table["mask"][slot])
        assert mask is not None
        np.testing.assert_array_equal(mask > 0, shrink(truth, 64) > 127)


def test_bytes_do_not_depend_on_workers(
    films: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "SHARD_IMAGES", 2)
    prepare(films, tmp_path, dataclasses.replace(FULL, workers=2))
    made = content(tmp_path)
    assert made.keys() == whole.keys() and "sheets/page_001.png" in made
    assert sum(name.startswith("pack/shards/") for name in made) == 10
    for name, data in whole.items():
        assert data == made[name], name


PROGRAM = """
import sys
from pathlib import Path
if __name__ == "__main__":
    from selftaught.data.prepare import job
    from selftaught.data.prepare.config import PrepareConfig
    job.SHARD_IMAGES = 2
    config = PrepareConfig(size=96, workers=int(sys.argv[3]), given_mask=False, sheets=1)
    job.prepare(Path(sys.argv[1]), Path(sys.argv[2]), config)
"""


def alive(group: int) -> list[int]:
    """Processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_a_kill_leaves_shards_to_go_on_from(
    films: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, out = tmp_path / "program.py", tmp_path / "out"
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), str(films), str(out), "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, start_new_session=True, env=environment)
    group = os.getpgid(process.pid)
    notes = out / "work"
    end = time.monotonic() + 120
    while len(list(notes.glob("0*.json"))) < 3 and time.monotonic() < end:
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "manifest.csv").exists()
    done = {path: path.stat().st_mtime_ns for path in sorted(notes.glob("0*.json"))}
    assert 3 <= len(done) < 10
    end = time.monotonic() + 30
    while alive(group) and time.monotonic() < end:
        time.sleep(0.1)
    assert not alive(group), "workers outlived their parent"
    kept = {path: path.stat().st_mtime_ns for path in sorted(notes.glob("0*.json"))}
    finished = {int(path.stem) for path in kept}
    damaged = out / f"pack/shards/{min(finished):05d}.bin"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (out / "pack/shards/.00009.bin.tmp").write_bytes(b"torn")
    worked: list[int] = []
    real = job.work_shard

    def counted(places, number, rows, config):
        worked.append(number)
        real(places, number, rows, config)

    monkeypatch.setattr(job, "SHARD_IMAGES", 2)
    monkeypatch.setattr(job, "work_shard", counted)
    prepare(films, out, FULL)
    assert set(worked) == (set(range(10)) - finished) | {min(finished)}
    assert content(out) == whole


def test_a_stop_keeps_finished_shards(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "SHARD_IMAGES", 5)
    stop_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        prepare(films, tmp_path / "out", PLAIN)
    assert not (tmp_path / "out" / "manifest.csv").exists()
    assert len(list((tmp_path / "out" / "work").glob("0*.json"))) == 2
    summary = prepare(films, tmp_path / "out", PLAIN)
    assert summary.images == 20
    assert prepare(films, tmp_path / "out", PLAIN) == summary  # complete: nothing is done


def test_other_settings_or_another_list_are_refused(films: Path, tmp_path: Path) -> None:
    prepare(films, tmp_path / "out", PLAIN)
    with pytest.raises(InputError, match="size 512, now 64"):
        prepare(films, tmp_path / "out", PrepareConfig(**{**vars(PLAIN), "size": 64}))
    other = films.parent / "other.csv"
    other.write_text("\n".join(films.read_text().splitlines()[:5]) + "\n")
    with pytest.raises(InputError, match="another list"):
        prepare(other, tmp_path / "out", PLAIN)
    with pytest.raises(InputError, match="not a prepared set"):
        prepare(films, films.parent, PLAIN)


def test_broken_files_are_quarantined_with_their_reason(films: Path, tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    reasons = write_broken(folder / "broken")
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (50, 40)).astype(np.uint8)
        cv2.imwrite(str(folder / f"good{number}.png"), noise)
    (folder / "way_out.png").symlink_to(films.parent / "images" / "000000.png")
    lines = ["path,label", *(f"broken/{name},1" for name in reasons), "missing.png,0"]
    lines += ["good0.png,0", "good1.png,0", "way_out.png,0", "good2.png,1"]
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    summary = prepare(folder, tmp_path / "out", PLAIN)
    assert (summary.images, summary.refused) == (3, 11)
    found = quarantined(tmp_path / "out")
    for name, reason in reasons.items():
        assert reason in found[f"broken/{name}"], (name, found)
    assert "missing" in found["missing.png"] and "leads out" in found["way_out.png"]
    made = read_manifest(tmp_path / "out")
    assert made.table["source"].tolist() == ["good0.png", "good1.png", "good2.png"]
    assert made.table["label"].tolist() == [0, 0, 1]


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    write_broken(tmp_path / "raw")
    with pytest.raises(InputError, match="none of the 9 images"):
        prepare(tmp_path / "raw", tmp_path / "out", PLAIN)
    assert len(quarantined(tmp_path / "out")) == 9
    assert not (tmp_path / "out" / "manifest.csv").exists()


def test_hostile_files_cost_no_memory(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    write_broken(folder)
    with_nested(folder / "nested.dcm", 300, ExplicitVRLittleEndian, undefined=True)
    with_nested(folder / "deeper.dcm", 1500, ExplicitVRLittleEndian, undefined=False)
    import zipfile

    with zipfile.ZipFile(folder / "bomb.npz.png", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(200_000_000))
    noise = np.random.default_rng(0).integers(0, 256, (50, 40)).astype(np.uint8)
    cv2.imwrite(str(folder / "good.png"), noise)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from selftaught.data.prepare.config import PrepareConfig\n"
        "from selftaught.data.prepare.job import prepare\n"
        "import cv2, pydicom, PIL.Image, pydicom.pixels\n"
        "off = dict.fromkeys(('carrier', 'polarity', 'mask'), 'none')\n"
        "config = PrepareConfig(**off, workers=1, sheets=0)\n"
        "first = peak()\n"
        "done = prepare(Path(sys.argv[1]), Path(sys.argv[2]), config)\n"
        "print(done.images, done.refused, peak() - first)\n"
    )
    command = [sys.executable, "-c", PEAK + code, str(folder), str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    images, refused, grown = map(int, run.stdout.split())
    assert (images, refused) == (1, 12) and grown < 100
    found = quarantined(tmp_path / "out")
    assert "64 Mpx" in found["bomb.png"] and "not an image" in found["bomb.npz.png"]
    for name in ("nested.dcm", "deeper.dcm"):
        assert "nested more than 64 levels" in found[name]


def identifiers(path: Path) -> set[str]:
    """Values of a DICOM file that may point to a person, at any depth."""
    import pydicom

    whole = pydicom.dcmread(path, force=True, stop_before_pixels=True)
    found = set()
    for element in [*whole.iterall(), *getattr(whole, "file_meta", [])]:
        if element.VR in IDENTIFYING and element.value:
            several = isinstance(element.value, pydicom.multival.MultiValue)
            values = [str(value) for value in (element.value if several else [element.value])]
            found |= {form for value in values for form in (value, value.replace("^", " "))}
    return {value for value in found if len(value) >= 5}


@pytest.mark.real_data
@pytest.mark.skipif(not DICOM.is_dir(), reason="the real DICOM files are not beside the checkout")
def test_dicom_files_are_read_or_refused_and_no_identifier_comes_out(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # File names are the user's and are kept: one of these is a UID.
    names = {path.name: f"{number}.dcm" for number, path in enumerate(sorted(DICOM.iterdir()))}
    (tmp_path / "raw").mkdir()
    for name, plain in names.items():
        shutil.copy(DICOM / name, tmp_path / "raw" / plain)
    config = dataclasses.replace(PLAIN, sheets=1)
    with pytest.warns(ManifestWarning, match="no film: 1 DICOM RT Plan"):
        summary = prepare(tmp_path / "raw", tmp_path / "out", config)
    print(summary)
    assert (summary.images, summary.refused) == (6, 7)
    found = quarantined(tmp_path / "out")
    for name, reason in (
        ("MR_truncated.dcm", "truncated|cannot be decoded"),
        ("SC_rgb_rle_16bit_2frame.dcm", "2 frames"),
    ):
        assert any(word in found[names[name]] for word in reason.split("|")), found
    assert all(reason for reason in found.values())
    outputs = content(tmp_path / "out")
    outputs["what was printed"] = "".join(capfd.readouterr()).encode()
    values = {path.name: identifiers(path) for path in DICOM.iterdir()}
    assert sum(map(len, values.values())) > 150
    for source, found in values.items():
        coded = {value.encode(c, "ignore") for value in found for c in ("utf-8", "latin-1")}
        for value in (one for one in coded if len(one) >= 5):
            for name, data in outputs.items():
                assert value not in data, (source, name)


def test_monochrome_twins_come_out_equal(tmp_path: Path) -> None:
    from selftaught.phantoms.export import FORMATS, encode

    master = np.random.default_rng(1).integers(0, 65536, (40, 30)).astype(np.uint16)
    names = [name for name in FORMATS if name.startswith("dicom")]
    assert len(names) >= 2
    (tmp_path / "raw").mkdir()
    for name in names:
        (tmp_path / "raw" / f"{name}.dcm").write_bytes(encode(master, name))
    prepare(tmp_path / "raw", tmp_path / "out", PLAIN)
    pack = Pack(tmp_path / "out" / "pack")
    for slot in range(len(names)):
        np.testing.assert_array_equal(pack.image(slot), pack.image(0))


def test_a_full_disk_ends_with_a_machine_error(
    films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def full(path: Path, data: object) -> None:
        raise MachineError(f"{path}: {os.strerror(errno.ENOSPC)}")

    monkeypatch.setattr("selftaught.data.prepare.shard_work.write_atomic", full)
    with pytest.raises(MachineError, match="No space"):
        prepare(films, tmp_path / "out", PLAIN)


def test_the_command(films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    truth = films.parent / "truth.json"
    films = films.with_name("five.csv")
    films.write_text("\n".join(films.with_name("manifest.csv").read_text().splitlines()[:6]))
    words = ["prepare", str(films), "--out", str(out), "--size", "96", "--workers", "1"]
    assert main([*words, "--given_mask", "false", "--check", str(truth)]) == 0
    told = capsys.readouterr().out
    assert "5 of 5 images prepared" in told and "carriers with IoU > 0.9" in told
    assert (out / "sheets" / "page_001.png").is_file()
    assert main(["prepare", str(films), "--out", str(out), "--size", "5"]) == 2
    assert "size is 5; allowed: 16 to 8192" in capsys.readouterr().err
    broken = tmp_path / "raw"
    write_broken(broken)
    cv2.imwrite(str(broken / "good.png"), np.arange(2500, dtype=np.uint8).reshape(50, 50))
    assert main(["prepare", str(broken), "--out", str(tmp_path / "b"), "--workers", "1"]) == 2
    assert "9 of 10 images were refused" in capsys.readouterr().err
    assert (tmp_path / "b" / "manifest.csv").is_file()
    assert main(["prepare", str(tmp_path / "none"), "--out", str(tmp_path / "c")]) == 2


def test_a_prepared_set_can_be_prepared_again(films: Path, tmp_path: Path) -> None:
    prepare(films, tmp_path / "a", PLAIN)
    config = PrepareConfig(**{**vars(PLAIN), "size": 32})
    summary = prepare(tmp_path / "a" / "manifest.csv", tmp_path / "b", config)
    assert summary.images == 20
    assert Pack(tmp_path / "b" / "pack").records["height"].max() == 32
    assert json.loads((tmp_path / "b" / "prepare.json").read_text())["settings"]["size"] == 32
