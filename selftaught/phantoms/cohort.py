"""Who is in a synthetic set: patients, their studies and the pictures of each study."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

from selftaught.phantoms.anomalies import KINDS, draw_kind
from selftaught.phantoms.radiograph import NORMAL
from selftaught.phantoms.streams import stream

PARTS_PER_PATIENT = (0.8, 0.15, 0.05)
SECOND_STUDY = 0.25
IMAGES_PER_STUDY = (0.2, 0.3, 0.35, 0.15)
# Share of studies whose label does not follow the patient's: these make mixed patients.
INDEPENDENT = 0.15


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One picture of a set.

    Attributes:
        index: number in the set.
        patient: number of the patient.
        study: number of the study in the whole set.
        study_of_part: number of the study of this patient and body part, from 1.
        image: number inside the study, from 1.
        body_part: one of the body parts.
        kind: anomaly of the study, or "none".
    """

    index: int
    patient: int
    study: int
    study_of_part: int
    image: int
    body_part: str
    kind: str

    @property
    def label(self) -> int:
        """0 normal, 1 abnormal."""
        return int(self.kind != NORMAL)


def plan(
    seed: int,
    images: int,
    body_parts: Sequence[str],
    abnormal_fraction: float,
    kinds: Sequence[str] = KINDS,
) -> list[Entry]:
    """The first `images` pictures of the set with this seed.

    Patients are normal or abnormal in the wanted proportion; studies follow their patient, but
    some are drawn anew, so that a few patients are mixed. All pictures of a study share its
    label and its injury.
    """
    return list(islice(_pictures(seed, body_parts, abnormal_fraction, kinds), images))


def _pictures(
    seed: int, body_parts: Sequence[str], fraction: float, kinds: Sequence[str]
) -> Iterator[Entry]:
    """All pictures, without end."""
    index = study = 0
    start = float(stream(seed, "cohort").random())
    for patient in count(1):
        draw = stream(seed, "patient", patient)
        many = min(int(draw.choice(3, p=PARTS_PER_PATIENT)) + 1, len(body_parts))
        # Evenly spread over the patients, so that small sets have both classes too.
        abnormal = int(patient * fraction + start) > int((patient - 1) * fraction + start)
        for part in draw.permutation(len(body_parts))[:many]:
            for number in range(1, 3 if draw.random() < SECOND_STUDY else 2):
                positive = abnormal
                if draw.random() < INDEPENDENT:
                    positive = bool(draw.random() < fraction)
                kind = draw_kind(draw, kinds)
                for image in range(1, int(draw.choice(4, p=IMAGES_PER_STUDY)) + 2):
                    yield Entry(
                        index=index,
                        patient=patient,
                        study=study,
                        study_of_part=number,
                        image=image,
                        body_part=body_parts[int(part)],
                        kind=kind if positive else NORMAL,
                    )
                    index += 1
                study += 1
