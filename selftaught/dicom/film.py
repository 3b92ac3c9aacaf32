"""A DICOM file as a film to score, or the reason why it is not scored."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from selftaught.data.images.decode import BadImage, check_header, is_dicom
from selftaught.models.seen import Seen, facts_of, judged

if TYPE_CHECKING:
    from pydicom import Dataset

CR, DX = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1"
CLASSES = {CR: "CR", DX: "DX for presentation"}
NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")


@dataclass(frozen=True, kw_only=True)
class Film:
    """One film.

    Attributes:
        path: of its file.
        header: all elements but the pixels; None where it cannot be read.
        body_part: lower case, "" where unknown.
        problem: why it is not scored, "" where it may be. It quotes no identifier.
        remarks: for its result.
    """

    path: Path
    header: "Dataset | None" = None
    body_part: str = ""
    problem: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def uid(self) -> str:
        """SOP Instance UID, "" where it cannot be read."""
        return "" if self.header is None else str(self.header.get("SOPInstanceUID", ""))


def read_film(path: Path, known: Seen | None) -> Film:
    """Read a film's header.

    Args:
        path: a file.
        known: what the model's training saw (`models.seen`).

    Raises:
        MachineError: the disk cannot be read.
    """
    from pydicom import dcmread

    try:
        if not is_dicom(path):
            return Film(path=path, problem="not a DICOM file")
        check_header(path)  # before anything that trusts lengths
        header = dcmread(path, stop_before_pixels=True, force=True)
        lacking = [name for name in NEEDED if not header.get(name)]
        facts = facts_of(header)
    except BadImage as error:
        return Film(path=path, problem=error.reason)
    except Exception as error:  # whose text may quote elements
        return Film(path=path, problem=f"damaged DICOM header ({type(error).__name__})")
    if lacking:
        return Film(path=path, problem=f"has no {lacking[0]}")
    if header.SOPClassUID not in CLASSES:
        allowed = f"allowed: {', '.join(CLASSES.values())}"
        return Film(path=path, header=header, problem=f"{header.SOPClassUID.name}; {allowed}")
    problem, remarks = judged(facts, known)
    return Film(
        path=path,
        header=header,
        body_part=facts["body_part"].lower(),
        problem=problem,
        remarks=tuple(remarks),
    )
