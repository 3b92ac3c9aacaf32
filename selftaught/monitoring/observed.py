"""What is compared of a set of films: scores, embeddings, grey levels, what headers say."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from selftaught.data.images.decode import check_header, is_dicom
from selftaught.data.images.dicom import acquisition
from selftaught.data.images.pack import locate
from selftaught.models.seen import plain
from selftaught.monitoring.drift import Films

if TYPE_CHECKING:
    from selftaught.detector import Detector

SCORES, EMBEDDINGS, ABNORMAL = "scores", "embeddings", "abnormal share"
LEVELS = ("brightness", "contrast")  # mean and standard deviation of what the network gets
NUMBERS = {"image size": "megapixels", "kV": "kV", "exposure": "mAs"}
KINDS = ("bits", "modality", "body part", "view")
TESTS = (SCORES, EMBEDDINGS, *LEVELS, ABNORMAL, *NUMBERS, *KINDS)
FROM_DICOM = {
    "Modality": "modality", "BodyPartExamined": "body part", "ViewPosition": "view",
    "BitsStored": "bits", "KVP": "kV", "Exposure": "exposure",
}  # fmt: skip
# Of a list that states them itself: these columns count, and not the header.
FROM_LIST = {"body_part": "body part", "modality": "modality", "view": "view"}
DEEP = {"1": "1", "I;16": "16", "I;16B": "16", "I": "16", "F": "32"}

Observed = dict[str, Films]


def of_films(
    table: pd.DataFrame,
    features: np.ndarray | None,
    levels: np.ndarray,
    facts: pd.DataFrame,
    normals: bool,
) -> Observed:
    """What is known of scored films.

    Args:
        table: (N rows) columns `score`, `label`, `patient`.
        features: (N, W); None: the method has none.
        levels: (N, 2) of `Detector.describe`.
        facts: (N rows) of `header_facts`.
        normals: compare scores, embeddings and levels of films that are labelled normal.
    """
    patients = patient_numbers(table)
    rows = (
        (table["label"] == 0).fillna(False).to_numpy(bool) if normals else np.ones(len(table), bool)
    )
    seen = {SCORES: _films(table["score"].to_numpy(), patients, rows)}
    if features is not None:
        seen[EMBEDDINGS] = _films(features, patients, rows)
    for name, values in zip(LEVELS, levels.T, strict=True):
        seen[name] = _films(values, patients, rows)
    if table["label"].notna().all():
        seen[ABNORMAL] = _films(table["label"].astype(str).to_numpy(), patients)
    for name in facts.columns:
        known = (
            facts[name].notna().to_numpy() if name in NUMBERS else (facts[name] != "").to_numpy()
        )
        if known.any():
            seen[name] = _films(facts[name].to_numpy(), patients, known)
    return seen


def of_model(detector: "Detector") -> Observed:
    """What a model holds of the films it was trained and calibrated with."""
    seen = {}
    if detector.calibration.normal_scores:
        patients = (
            np.array(detector.calibration.patients) if detector.calibration.patients else None
        )
        scores = np.array(detector.calibration.normal_scores)
        seen[SCORES] = Films(values=scores, patients=patients)
    if detector.bank is not None:
        seen[EMBEDDINGS] = Films(values=detector.bank.normals.numpy())
    films = detector.training.get("films")
    for column, name in FROM_LIST.items():
        counts = films.get(column) if isinstance(films, dict) else None
        known = {one: int(count) for one, count in (counts or {}).items() if one}
        if known:
            seen[name] = Films(values=np.repeat(list(known), list(known.values())))
    return seen


def header_facts(table: pd.DataFrame, root: Path) -> pd.DataFrame:
    """What headers say of films that can be read, and the list beside them.

    Args:
        table: (N rows) column `path`, and as far as they are known `body_part`, `modality`, `view`.
        root: folder of the paths.

    Returns:
        (N rows) columns of `NUMBERS` (float64, NaN where unknown) and `KINDS` (text, "").
    """
    rows = [_of_film(root / path) for path in table["path"]]
    facts = pd.DataFrame(rows, index=table.index, columns=[*NUMBERS, *KINDS])
    for name in NUMBERS:
        facts[name] = facts[name].astype(float)
    for name in KINDS:
        facts[name] = facts[name].fillna("").astype(str)
    for column, name in FROM_LIST.items():
        if column in table and (table[column] != "").any():
            facts[name] = table[column]
        facts[name] = [plain(column, value) for value in facts[name]]
    return facts


def patient_numbers(table: pd.DataFrame) -> np.ndarray | None:
    """(N,) a number for the patient of each film, of its own without one; None: none is named."""
    named = (table["patient"] != "").to_numpy()
    if not named.any():
        return None
    return np.where(
        named, table["patient"].astype("category").cat.codes, -1 - np.arange(len(table))
    )


def _films(
    values: np.ndarray, patients: np.ndarray | None, rows: np.ndarray | None = None
) -> Films:
    rows = np.ones(len(values), bool) if rows is None else rows
    return Films(values=values[rows], patients=None if patients is None else patients[rows])


def _of_film(path: Path) -> dict[str, str | float]:
    from PIL import Image

    height, width = check_header(path)
    facts: dict[str, str | float] = {"image size": height * width / 1e6}
    packed = locate(path)
    if packed is not None:
        return facts | {"bits": str(8 * packed.pack.image(packed.slot).dtype.itemsize)}
    if is_dicom(path):
        taken = {FROM_DICOM[name]: value for name, value in acquisition(path).items()}
        return facts | {name: v.lower() if isinstance(v, str) else v for name, v in taken.items()}
    try:
        with Image.open(path) as film:
            return facts | {"bits": DEEP.get(film.mode, "8")}
    except (OSError, ValueError):  # a kind of TIFF that only we read
        return facts
