"""A model beside an archive: films in, scores and the objects that carry them out."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from selftaught import __version__
from selftaught.detector import Detector
from selftaught.dicom.film import Film, read_film
from selftaught.errors import InputError, MachineError
from selftaught.files import sha256, standing
from selftaught.maps.overlay import eight_bits, film_of, overlay
from selftaught.models.files import FACTS, model_folder

if TYPE_CHECKING:
    from pydicom import Dataset

BATCH = 32
UNKNOWN = "the model does not say how its films were prepared"


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Which model a result is from.

    Attributes:
        name: of its method.
        version: of this program.
        digest: SHA-256 of its model.json, which has those of all its files.
        threshold: a film is flagged above it; None where none is flagged.
    """

    name: str
    version: str
    digest: str
    threshold: float | None


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a film.

    Attributes:
        film: as it was read.
        columns: of `Detector.explain`, as JSON values; none where it has no score.
        problem: why it has no score; "" where it has one.
        objects: DICOM objects for the archive.
    """

    film: Film
    columns: dict[str, Any]
    problem: str
    objects: "tuple[Dataset, ...]" = ()

    def facts(self) -> dict[str, Any]:
        """The film by its SOP Instance UID, and what is known of it; no other identifier."""
        facts = {"film": self.film.uid, **self.columns, "remarks": list(self.film.remarks)}
        return {**facts, "problem": self.problem}


class Scorer:
    """Scores films of an archive.

    Args:
        folder: of a model, or of a run with one.
        captures: whether results have a picture too.

    Raises:
        InputError: as `Detector.load`; or the model cannot score films as they come.
    """

    def __init__(self, folder: Path, *, captures: bool = True) -> None:
        from selftaught.dicom import results  # a missing package is named before work begins

        self._results, self._captures = results, captures
        folder = model_folder(folder)
        self.detector = Detector.load(folder)
        films = self.detector.preprocessing
        if films.masked and films.prepared is None:
            raise InputError(
                f"{folder}: was trained on images multiplied by masks that it cannot make itself; "
                "allowed: a model trained without masks, or on a set of selftaught prepare"
            )
        self.seen = self.detector.training.get("films")
        self.model = Identity(
            name=self.detector.method,
            version=__version__,
            digest=sha256(standing(folder) / FACTS),
            threshold=self.detector.calibration.threshold,
        )

    def read(self, path: Path) -> Film:
        """A file as a film of this model; errors as `read_film`."""
        film = read_film(path, self.seen)
        if self.detector.preprocessing.known or film.problem:
            return film
        return dataclasses.replace(film, remarks=(*film.remarks, UNKNOWN))

    def __call__(self, films: Sequence[Film]) -> list[Result]:
        """Score films and build their objects; a film that cannot be scored has the reason.

        Raises:
            MachineError: the disk or the device failed.
        """
        results = {id(film): Result(film=film, columns={}, problem=film.problem) for film in films}
        fine = [film for film in films if not film.problem]
        for start in range(0, len(fine), BATCH):
            some = fine[start : start + BATCH]
            results.update((id(one.film), one) for one in self._scored(some))
        return [results[id(film)] for film in films]

    def _scored(self, films: Sequence[Film]) -> list[Result]:
        try:
            rows, heats = self._rows(films), self._heats(films)
            return [self._result(*one) for one in zip(films, rows, heats, strict=True)]
        except (MachineError, MemoryError):
            raise
        except Exception as error:
            if len(films) > 1:  # the fault of one is not that of the others
                return [result for film in films for result in self._scored([film])]
            reason = error if isinstance(error, InputError) else type(error).__name__
            return [Result(film=films[0], columns={}, problem=f"cannot be scored ({reason})")]

    def _rows(self, films: Sequence[Film]) -> list[dict[str, Any]]:
        table = self.detector.explain(**_given(films)).drop(columns="path")
        text = table.to_json(orient="records", double_precision=15)
        rows: list[dict[str, Any]] = json.loads(text)
        return rows

    def _heats(self, films: Sequence[Film]) -> Sequence[np.ndarray | None]:
        """(S, S) of each film, where captures are made and the model has a scale for maps."""
        if not self._captures or self.detector.map_method not in self.detector.scales:
            return [None] * len(films)
        return list(self.detector.maps(**_given(films)).numpy())

    def _result(self, film: Film, row: dict[str, Any], heat: np.ndarray | None) -> Result:
        problem = row.pop("problem").removeprefix(f"{film.path}: ")
        if problem or row["score"] is None:
            return Result(film=film, columns={}, problem=problem or "has no score")
        columns = {name: value for name, value in row.items() if value is not None}
        objects = [self._results.report(film, columns, self.model)]
        if self._captures:
            picture = self._picture(film, heat)
            objects.append(self._results.capture(film, columns, self.model, picture))
        return Result(film=film, columns=columns, problem="", objects=tuple(objects))

    def _picture(self, film: Film, heat: np.ndarray | None) -> np.ndarray:
        """(H, W) uint8 of a film, or (H, W, 3) with its heat; as large as a capture may be."""
        pixels, cut = film_of(film.path, self.detector.preprocessing, film.body_part)
        small = self._results.fitted(eight_bits(pixels))
        if heat is None:
            return small
        if cut is not None:
            share = np.array(small.shape[::-1]) / pixels.shape[::-1]
            cut = dataclasses.replace(cut, quad=(cut.quad + 0.5) * share - 0.5)
        return overlay(small, heat, cut)


def _given(films: Sequence[Film]) -> dict[str, Any]:
    """Films as the detector takes them."""
    return {
        "images": [film.path for film in films],
        "body_parts": [film.body_part for film in films],
        "batch_size": BATCH,
        "bad_files": "skip",
    }
