"""Reports and captures: valid, of the film's patient, the same objects however often made."""

import shutil
import subprocess

import highdicom as hd
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import RLELossless

from selftaught.dicom.folder import saved
from tests.dicom.films import film, save


@pytest.fixture
def made(scorer, tmp_path):
    """Results of one film, as they come back from their files."""

    def make(**elements):
        path = save(tmp_path / "film.dcm", film(**elements))
        (result,) = scorer([scorer.read(path)])
        assert not result.problem
        paths = [tmp_path / f"{one.Modality}.dcm" for one in result.objects]
        for path, one in zip(paths, result.objects, strict=True):
            path.write_bytes(saved(one))
        return result, paths

    return make


def values(report):
    (group,) = report.content.get_image_measurement_groups()
    numbers = {one.name.value: one.value for one in group.get_measurements()}
    codes = {one.name.value: one.value.meaning for one in group.get_qualitative_evaluations()}
    return numbers, codes, group


def test_a_report_says_what_the_model_found(made, scorer):
    result, (path, _) = made()
    report = hd.sr.srread(path)
    numbers, codes, group = values(report)
    assert numbers["score"] == pytest.approx(result.columns["score"], rel=1e-7)
    assert numbers["percentile"] == result.columns["percentile"]
    assert numbers["threshold"] == scorer.model.threshold == 2.0
    assert codes == {"flagged": "Yes" if result.columns["score"] > 2.0 else "No"}
    flags = report.VerificationFlag, report.CompletionFlag, report.PreliminaryFlag
    assert flags == ("UNVERIFIED", "PARTIAL", "PRELIMINARY")
    text = str(report)
    for word in (scorer.model.digest, scorer.model.version, scorer.model.name):
        assert word in text
    assert "research, not a diagnosis" in report.SeriesDescription
    source = dcmread(path.with_name("film.dcm"))
    (image,) = [one for one in group.source_images]
    assert image.referenced_sop_instance_uid == source.SOPInstanceUID


@pytest.mark.parametrize(
    "charset, name",
    [
        ("ISO_IR 100", "Müller^Jürgen"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    ],
)
def test_patient_and_study_are_the_films(made, charset, name):
    _, paths = made(SpecificCharacterSet=charset, PatientName=name, StudyDescription="Knie")
    source = dcmread(paths[0].with_name("film.dcm"))
    for path in paths:
        one = dcmread(path)
        assert one.PatientName == source.PatientName == name
        for keyword in ("PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID"):
            assert one[keyword].value == source[keyword].value
        for keyword in ("StudyID", "StudyDate", "AccessionNumber", "StudyDescription"):
            assert one[keyword].value == source[keyword].value
        assert one.SeriesInstanceUID != source.SeriesInstanceUID


def test_what_a_film_states_wrongly_passes_as_it_is(made):
    wrong = {"PatientID": "X" * 80, "PatientBirthDate": "1970-01-02", "InstanceNumber": None}
    _, paths = made(**wrong, PatientOrientation=None, PatientSex="x")
    assert [dcmread(path).PatientID for path in paths] == ["X" * 80] * 2


def test_uids_follow_from_film_and_model(made, scorer):
    first, second = ([one.SOPInstanceUID for one in made()[0].objects] for _ in range(2))
    other = [one.SOPInstanceUID for one in made(seed=1)[0].objects]
    assert first == second
    assert len({*first, *other}) == 4


def test_captures_are_small_pictures(made, scorer):
    _, (_, path) = made()
    one = dcmread(path)
    assert one.file_meta.TransferSyntaxUID == RLELossless
    assert one.pixel_array.shape[1:] == (427, 3) and one.pixel_array.std() > 10
    from selftaught.dicom.results import _with_figures, fitted

    for shape in ((4000, 2000), (2000, 4000), (30, 9000)):
        large = _with_figures(fitted(np.zeros(shape, np.uint8)), {"score": 1.0}, ("long " * 40,))
        assert max(large.shape) <= 1024


def test_captures_show_heat_where_the_model_has_a_scale(made, scorer, monkeypatch):
    from selftaught.maps.scale import Scale

    _, (_, path) = made()
    assert np.ptp(dcmread(path).pixel_array, axis=2).max() == 0  # grey
    method = scorer.detector.map_method
    scale = Scale(method=method, low=0.0, high=1e-6, films=1)
    monkeypatch.setitem(scorer.detector.scales, method, scale)
    _, (_, path) = made()
    assert np.ptp(dcmread(path).pixel_array.astype(int), axis=2).max() > 50


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dciodvfy (dicom3tools)")
@pytest.mark.parametrize("elements", [{}, {"dx": True}, {"Laterality": None}])
def test_dciodvfy_finds_no_error(made, elements):
    _, paths = made(**elements)
    for path in paths:
        done = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True)
        lines = (done.stdout + done.stderr).splitlines()
        assert lines and not [line for line in lines if line.startswith("Error")], lines


@pytest.mark.skipif(shutil.which("dsrdump") is None, reason="needs dsrdump (dcmtk)")
def test_dsrdump_reads_a_report(made):
    result, (path, _) = made()
    done = subprocess.run(["dsrdump", path], capture_output=True, text=True)
    assert done.returncode == 0 and "Anomaly score" in done.stdout, done.stderr
    assert f"{result.columns['score']:.8g}" in done.stdout
