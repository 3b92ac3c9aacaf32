"""An image that cannot be read while a run goes on: what replaces it, and how it is reported."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import pandas as pd

from selftaught.data.images.limits import BadImage
from selftaught.errors import InputError

# The list of a run's bad files, in its folder.
NAME = "bad_files.csv"
COLUMNS = ("path", "file", "reason", "label", "split", "stage", "step", "rank")
LABELS = {0: "normal", 1: "abnormal"}

Content = TypeVar("Content")


class Problem(NamedTuple):
    """Why a sample cannot be used.

    Attributes:
        sample: its id.
        file: the file that cannot be used: the image, or its mask.
        reason: what is wrong and what is allowed, without the file's name.
    """

    sample: int
    file: Path
    reason: str


@dataclass(frozen=True)
class Loaded(Generic[Content]):
    """What was loaded for one place of a batch.

    Attributes:
        sample: id of the sample that was taken; -1 = none.
        content: what was loaded for it; None = nothing.
        problems: of the samples tried before this one, which cannot be used.
    """

    sample: int
    content: Content | None
    problems: tuple[Problem, ...] = ()


class Skipping:
    """Puts another sample in the place of one that cannot be read, or leaves the place empty.

    The replacement depends on `stand_ins` and on the files alone, so that any number of threads and
    ranks agree. A sample that was bad once stays bad for this object.

    Args:
        stand_ins: (epoch, sample) -> ids to try in turn. None: the place stays empty.
    """

    def __init__(self, stand_ins: Callable[[int, int], Iterable[int]] | None = None) -> None:
        self._stand_ins = stand_ins
        self._bad: dict[int, Problem] = {}

    def find(self, epoch: int, sample: int, load: Callable[[int], Content]) -> Loaded[Content]:
        """Load a sample or the first of its stand-ins that can be used.

        Args:
            epoch: from 0.
            sample: id that is asked for.
            load: raises `BadImage` for an id that cannot be used.

        Raises:
            InputError: no stand-in can be used either.
        """
        problems: list[Problem] = []
        for one in self._candidates(epoch, sample):
            problem = self._bad.get(one)
            if problem is None:
                try:
                    return Loaded(one, load(one), tuple(problems))
                except BadImage as error:
                    problem = self._bad.setdefault(one, Problem(one, error.path, error.reason))
            problems.append(problem)
        if self._stand_ins is not None:
            raise InputError(
                f"{problems[0].file}: {problems[0].reason}; none of the {len(problems) - 1} images "
                "drawn to stand in for it can be read either"
            )
        return Loaded(-1, None, tuple(problems))

    def _candidates(self, epoch: int, sample: int) -> Iterator[int]:
        yield sample
        if self._stand_ins is not None:
            yield from self._stand_ins(epoch, sample)


def find(
    skipping: Skipping | None, epoch: int, sample: int, load: Callable[[int], Content]
) -> Loaded[Content]:
    """`Skipping.find`; without one, a sample that cannot be used raises its `BadImage`."""
    if skipping is None:
        return Loaded(sample, load(sample))
    return skipping.find(epoch, sample, load)


def read_bad_files(path: Path) -> pd.DataFrame:
    """A `bad_files.csv` as text.

    Raises:
        InputError: it is damaged.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    if list(table.columns) != list(COLUMNS):
        raise InputError(f"{path}: has columns {list(table.columns)}; allowed: {list(COLUMNS)}")
    return table


def in_words(table: pd.DataFrame, images: int) -> str:
    """One line with the counts of bad images by set (if any) and label; "" for an empty table.

    Args:
        table: of the bad images, with columns `split` and `label`.
        images: how many images are in use.
    """
    if not len(table):
        return ""
    label = pd.to_numeric(table["label"]).map(LABELS).fillna("unlabelled")
    counts = table.groupby(["split", label]).size()
    parts = ", ".join(" ".join(filter(None, (f"{n}", *which))) for which, n in counts.items())
    return f"{len(table)} of {images} images cannot be read and were skipped: {parts}"
