"""Valid CR and DX films of textures, and a model of random weights that saw knees."""

import warnings
from pathlib import Path

import cv2
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

CR, DX = UID("1.2.840.10008.5.1.4.1.1.1"), UID("1.2.840.10008.5.1.4.1.1.1.1")
NAME, PATIENT = "Geheim^Person", "SECRET-4711"
SEEN = {"modality": {"cr": 20}, "body_part": {"knee": 20}, "view": {"ap": 19, "pa": 1}}


def texture(seed: int, shape: tuple[int, int] = (96, 80)) -> np.ndarray:
    noise = np.random.default_rng(seed).random(shape).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 4)
    return cv2.normalize(smooth, None, 0, 4095, cv2.NORM_MINMAX).astype(np.uint16)


def film(seed: int = 0, study: str = "", *, dx: bool = False, **elements: object) -> Dataset:
    """A film of a left knee; elements of other values or, as None, left out."""
    pixels = texture(seed)
    one = Dataset()
    one.SpecificCharacterSet = "ISO_IR 100"
    one.SOPClassUID = DX if dx else CR
    one.SOPInstanceUID = generate_uid(entropy_srcs=["film", str(seed), study])
    one.StudyInstanceUID = study or generate_uid(entropy_srcs=["study", str(seed)])
    one.SeriesInstanceUID = generate_uid(entropy_srcs=["series", str(seed), study])
    one.StudyDate, one.StudyTime, one.StudyID = "20261101", "101500", "S1"
    one.AccessionNumber, one.ReferringPhysicianName = "A-99", "Dr^Who"
    one.PatientName, one.PatientID = NAME, PATIENT
    one.PatientBirthDate, one.PatientSex = "19700102", "O"
    one.Modality, one.BodyPartExamined, one.ViewPosition = "DX" if dx else "CR", "KNEE", "AP"
    one.SeriesNumber, one.InstanceNumber, one.Manufacturer = 1, 1, "Maker"
    one.Laterality, one.PatientOrientation = "L", ["L", "F"]
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.Rows, one.Columns = pixels.shape
    one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 12, 11, 0
    one.PixelData = pixels.tobytes()
    for name, value in elements.items():
        if value is None:
            delattr(one, name)
        else:
            setattr(one, name, value)
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one.file_meta.MediaStorageSOPClassUID = one.get("SOPClassUID", CR)
    one.file_meta.MediaStorageSOPInstanceUID = one.get("SOPInstanceUID", UID("1.2.3"))
    return one


def save(path: Path, one: Dataset) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one.save_as(path, enforce_file_format=True)
    return path


def write_model(folder: Path, seen: dict | None = SEEN) -> Path:
    """A tiny model folder; the encoder is a thin one where `tests.thin` is on."""
    from selftaught.models import Calibration, Preprocessing, save_model
    from tests.tiny import spheres

    facts = {} if seen is None else {"films": seen}
    films = Preprocessing(image_size=32)
    normals = (1.0, 2.0, 3.0)
    return save_model(folder, spheres(3), films, Calibration(2.0, normals), facts)
