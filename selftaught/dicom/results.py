"""A film's score as DICOM objects: a TID 1500 report and a Secondary Capture.

Both are of the film's patient and study. Their UIDs follow from the film's and the model's hash, so
that a result which is built or sent twice is one object to an archive.
"""

import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import cv2
import highdicom as hd
import numpy as np
import pydicom
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import CodedConcept
from pydicom import Dataset
from pydicom.uid import RLELossless

from selftaught.dicom.film import Film
from selftaught.dicom.scorer import Identity

NOTE = "research, not a diagnosis"
MAKER, SCHEME = "selftaught", "99SELFTAUGHT"
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "selftaught.dicom")
# Pixels: of a capture's longer side, of one that is still legible; of a line of text, of all.
LARGEST, LEAST, LINE, TEXT = 1024, 512, 32, 192
REPORTS, CAPTURES = 9001, 9002  # numbers of series, after those of films
BLANK = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber"),
    *("StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)
YES, NO = CodedConcept("373066001", "SCT", "Yes"), CodedConcept("373067005", "SCT", "No")
PLAIN_FILM = CodedConcept("168537006", "SCT", "Plain radiography")
COMMENT, DEVICE = CodedConcept("121106", "DCM", "Comment"), CodedConcept("121007", "DCM", "Device")
NUMBER, PERCENT = CodedConcept("1", "UCUM", "no units"), CodedConcept("%", "UCUM", "Percent")
MEASURED = (
    ("score", "Anomaly score", NUMBER),
    ("percentile", "Percentile among normal films", PERCENT),
    ("p_value", "Conformal p-value among normal films", NUMBER),
    ("threshold", "Threshold of the anomaly score", NUMBER),
)


def uid_of(*parts: str) -> str:
    """A UID that follows from texts (PS3.5 B.2, of a name-based UUID)."""
    return f"2.25.{uuid.uuid5(NAMESPACE, '/'.join(parts)).int}"


def report(film: Film, columns: Mapping[str, Any], model: Identity) -> Dataset:
    """A film's score as an Enhanced SR of TID 1500: UNVERIFIED, PARTIAL, PRELIMINARY.

    Args:
        film: with its header.
        columns: its score; percentile and flagged where the model gives them.
        model: that gave them.
    """
    header = film.header
    assert header is not None
    with _as_stated():
        group = _measurements(film, columns, model)
        context = hd.sr.ObserverContext(
            DEVICE,
            hd.sr.DeviceObserverIdentifyingAttributes(
                uid=uid_of("device", model.digest),
                name=MAKER,
                manufacturer_name=MAKER,
                model_name=model.name[:64],
                serial_number=model.digest,
            ),
        )
        content = hd.sr.MeasurementReport(
            hd.sr.ObservationContext(observer_device_context=context),
            procedure_reported=PLAIN_FILM,
            imaging_measurements=[group],
        )
        made = hd.sr.EnhancedSR(
            [_reference(header)], content[0], **_series(film, model, "report", REPORTS)
        )
        return _of_the_film(made, header)


def _measurements(
    film: Film, columns: Mapping[str, Any], model: Identity
) -> hd.sr.MeasurementsAndQualitativeEvaluations:
    assert film.header is not None
    values = {"threshold": model.threshold, **columns}
    flagged = values.get("flagged")
    name = CodedConcept("flagged", SCHEME, "Score above the threshold")
    evaluations = (
        [] if flagged is None else [hd.sr.QualitativeEvaluation(name, YES if flagged else NO)]
    )
    source = hd.sr.SourceImageForMeasurementGroup(
        film.header["SOPClassUID"].value, film.header["SOPInstanceUID"].value
    )
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=uid_of("measurement", model.digest, film.uid), identifier="anomaly score"
        ),
        algorithm_id=hd.sr.AlgorithmIdentification(
            name=f"{MAKER} {model.name}",
            version=model.version,
            parameters=[f"model.json SHA-256 {model.digest}", f"threshold {model.threshold}", NOTE],
        ),
        measurements=[
            hd.sr.Measurement(
                CodedConcept(code, SCHEME, meaning), float(f"{values[code]:.8g}"), unit
            )
            for code, meaning, unit in MEASURED
            if values.get(code) is not None
        ],
        qualitative_evaluations=evaluations,
        source_images=[source],
    )
    for text in (NOTE, *film.remarks):
        comment = hd.sr.TextContentItem(COMMENT, text, hd.sr.RelationshipTypeValues.CONTAINS)
        group[0].ContentSequence.append(comment)
    return group


def capture(
    film: Film, columns: Mapping[str, Any], model: Identity, picture: np.ndarray
) -> Dataset:
    """A film's picture with its figures, as a Secondary Capture (RGB, RLE, at most 1,024 px).

    Args:
        film: with its header.
        columns: its score; percentile and flagged where the model gives them.
        model: that gave them.
        picture: (H, W) uint8, or (H, W, 3) uint8 with a heat map.
    """
    header = film.header
    assert header is not None
    with _as_stated():
        made = hd.sc.SCImage(
            _with_figures(picture, columns, film.remarks),
            "RGB",
            8,
            "PATIENT",
            study_instance_uid=header.StudyInstanceUID,
            patient_orientation=("L", "F"),
            transfer_syntax_uid=RLELossless,
            **_series(film, model, "capture", CAPTURES),
        )
        made.DerivationDescription = f"Score of a model; {NOTE}"
        made.SourceImageSequence = [Dataset()]
        made.SourceImageSequence[0].ReferencedSOPClassUID = header.SOPClassUID
        made.SourceImageSequence[0].ReferencedSOPInstanceUID = header.SOPInstanceUID
        side = _side(header)
        made.Laterality = side if side in ("L", "R") else ""  # empty is allowed, missing is not
        made.PatientOrientation = header.get("PatientOrientation") or []
        for name in ("BodyPartExamined", "BurnedInAnnotation"):
            if name in header:
                made.add(header[name])
        return _of_the_film(made, header)


def _with_figures(
    picture: np.ndarray, columns: Mapping[str, Any], remarks: tuple[str, ...]
) -> np.ndarray:
    """(H, W, 3) uint8 with a line of figures above the film, and what to know of them below."""
    notes = [NOTE, *remarks]
    if picture.ndim == 2:
        picture = np.repeat(picture[:, :, None], 3, axis=2)
    else:
        notes.insert(1, "colour: what raises the score")
    above = [f"{MAKER}: score {columns['score']:.4g}"]
    if (percentile := columns.get("percentile")) is not None:
        above.append(f"above {percentile:.0f} % of normal films")
    if (flagged := columns.get("flagged")) is not None:
        above.append("FLAGGED" if flagged else "not flagged")
    lines = [_bar(text, picture) for text in (", ".join(above), *notes)][: TEXT // LINE]
    return np.concatenate([lines[0], picture, *lines[1:]])


def fitted(film: np.ndarray) -> np.ndarray:
    """A film (H, W) as large as a capture may be, with room for its lines of text."""
    largest = max(film.shape)
    scale = min(max(1.0, LEAST / largest), (LARGEST - TEXT) / largest)
    if scale == 1:
        return film
    size = (round(film.shape[1] * scale) or 1, round(film.shape[0] * scale) or 1)
    return cv2.resize(film, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def _bar(text: str, picture: np.ndarray) -> np.ndarray:
    """A line of text as wide as the picture; letters as large as fit."""
    font, width = cv2.FONT_HERSHEY_SIMPLEX, picture.shape[1]
    (wide, _), base = cv2.getTextSize(text, font, 1.0, 1)
    size = min(0.7, 0.96 * width / wide)
    bar = np.zeros((LINE, width, 3), np.uint8)
    at = (int(0.02 * width), LINE - 6 - int(base * size))
    return cv2.putText(bar, text, at, font, size, (255, 255, 255), 1, cv2.LINE_AA)


def _series(film: Film, model: Identity, kind: str, number: int) -> dict[str, Any]:
    """What both objects are given: one series of results for each series of films and side."""
    header = film.header
    assert header is not None
    series = uid_of("series", kind, model.digest, header.SeriesInstanceUID, _side(header))
    instance = str(header.get("InstanceNumber") or 1)
    return {
        "series_instance_uid": series,
        "series_number": number,
        "sop_instance_uid": uid_of(kind, model.digest, film.uid),
        "instance_number": int(instance) if instance.isdecimal() else 1,
        "manufacturer": MAKER,
        "manufacturer_model_name": model.name[:64],
        "software_versions": model.version,
        "device_serial_number": model.digest,
        "series_description": f"{MAKER} anomaly score: {NOTE}",
        "coding_schemes": [
            CodingSchemeIdentificationItem(SCHEME, "selftaught", "1", None, "selftaught")
        ],
    }


def _side(header: Dataset) -> str:
    return str(header.get("ImageLaterality") or header.get("Laterality") or "")


def _reference(header: Dataset) -> Dataset:
    """What highdicom asks of a film, without a value that it might refuse."""
    blank = Dataset()
    for name in BLANK:
        setattr(blank, name, "")
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"):
        setattr(blank, name, header[name].value)
    return blank


def _of_the_film(made: Dataset, header: Dataset) -> Dataset:
    """The object with the film's patient and study, as the film states them."""
    made.copy_patient_and_study_information(header)
    if "SpecificCharacterSet" in header:  # of the names; what is ours is ASCII
        made.add(header["SpecificCharacterSet"])
    return made


@contextmanager
def _as_stated() -> Iterator[None]:
    """Values of others pass as they are, right or wrong, and stand in no warning."""
    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")
        yield
