"""DICOM files with patients' data in them: nothing of it reaches an output of prepare or run.

That of real files is looked for in tests/data/prepare/test_job.py.
"""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest

from selftaught.cli.main import main
from selftaught.data.images.pack import Pack
from selftaught.phantoms.export import encode
from tests.tiny import options

pydicom = pytest.importorskip("pydicom")

pytestmark = pytest.mark.usefixtures("thin_encoder")
RULES = {"carrier": "none", "polarity": "none", "mask": "none", "workers": 1, "sheets": 1}
IDENTIFIERS = {
    "PatientName": "Secretperson^Vera",
    "PatientID": "SECRET-4711",
    "PatientBirthDate": "19510203",
    "StudyDate": "20190817",
    "AcquisitionDateTime": "20190817101112.5",
    "InstitutionName": "Hidden Hospital",
    "ReferringPhysicianName": "Confidential^Doctor",
    "AccessionNumber": "ACC-90210",
    "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.111222333",
    "SeriesInstanceUID": "1.2.826.0.1.3680043.8.498.444555666",
    "SOPInstanceUID": "1.2.826.0.1.3680043.8.498.777888999",
}


def write_films(folder: Path, count: int) -> Path:
    """Bright bars on noise, as pairs of MONOCHROME1 and 2 that look the same; one file is cut."""
    folder.mkdir()
    lines = ["path,label,patient"]
    for number in range(count):
        generator = np.random.default_rng(number // 2)
        film = generator.integers(0, 30_000, (48, 40)).astype(np.uint16)
        if number // 2 % 3 == 0:
            film[20:26, 8:32] = 60_000
        form = "dicom_monochrome1" if number % 2 else "dicom"
        elements = pydicom.dcmread(io.BytesIO(encode(film, form)))
        for name, value in IDENTIFIERS.items():
            setattr(elements, name, value)
        elements.file_meta.MediaStorageSOPInstanceUID = IDENTIFIERS["SOPInstanceUID"]
        elements.save_as(folder / f"{number:02d}.dcm")
        lines.append(f"{number:02d}.dcm,{int(number // 2 % 3 == 0)},p{number // 2}")
    cut = folder / f"{count - 1:02d}.dcm"
    cut.write_bytes(cut.read_bytes()[:-500])
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder / "manifest.csv"


def everything(folder: Path, told: str) -> dict[str, bytes]:
    """All outputs by name, and what was printed."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return found | {"printed": told.encode()}


def assert_absent(outputs: dict[str, bytes], values: list[str]) -> None:
    for value in values:
        pieces = {value, *value.split("^")}
        for piece in (piece.encode() for piece in pieces if len(piece) > 3):
            for name, data in outputs.items():
                assert piece not in data, f"{piece!r} is in {name}"


def printed(arguments: list[str], code: int = 0) -> str:
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        assert main(arguments) == code, text.getvalue()
    return text.getvalue()


def test_no_identifier_reaches_any_file_of_a_run(tmp_path: Path) -> None:
    manifest, run = write_films(tmp_path / "films", 50), tmp_path / "run"
    more = {f"prepare.{name}": value for name, value in RULES.items()}
    more |= {"data.prepare": "always", "pretext.epochs": 1, "finetune.epochs": 1}
    told = printed(["run", *options(manifest, run, **more)])
    assert "49 of 50 images prepared, 1 refused" in told
    outputs = everything(run, told)
    for name in ("report.html", "scores.csv", "prepared/quarantine.csv", "metrics.jsonl"):
        assert outputs[name]
    assert any(name.startswith("prepared/sheets/") for name in outputs)
    assert_absent(outputs, list(IDENTIFIERS.values()))
    pack = Pack(run / "prepared" / "pack")
    for slot in range(0, 48, 2):
        np.testing.assert_array_equal(pack.image(slot), pack.image(slot + 1))


def test_no_identifier_is_in_what_a_damaged_file_makes_us_say(tmp_path: Path) -> None:
    manifest = write_films(tmp_path / "films", 4)
    for path in (tmp_path / "films").glob("*.dcm"):
        data = path.read_bytes()
        where = data.index(IDENTIFIERS["AccessionNumber"].encode())
        # The name's own length is damaged, so that its text runs into the next elements.
        path.write_bytes(data[: where - 2] + b"\xff\x7f" + data[where:])
    out = tmp_path / "out"
    words = [word for name, value in RULES.items() for word in (f"--{name}", str(value))]
    told = printed(["prepare", str(manifest), "--out", str(out), *words], code=2)
    outputs = everything(out, told)
    assert len(outputs["quarantine.csv"].splitlines()) == 5
    assert_absent(outputs, list(IDENTIFIERS.values()))
