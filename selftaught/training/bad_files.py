"""The images that a run skips: `bad_files.csv`, over all ranks, and the share that is too many."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from selftaught import distributed
from selftaught.data.images.bad_files import COLUMNS, NAME, Problem, in_words, read_bad_files
from selftaught.errors import InputError
from selftaught.files import write_atomic

# What `stage` is for files that were bad when the run began.
CHECK = "check"


class SkippedWarning(UserWarning):
    """An image is left out, or another one takes its place."""


class BadFiles:
    """What could not be read so far; all ranks hold the same list after `share`.

    Args:
        run: the run folder; a `bad_files.csv` in it is taken up.
        frame: split table; a problem's sample is its row number.
        root: folder that the table's paths start from.
        limit: largest share of the images in use that may be skipped, 0 to 1.
    """

    def __init__(self, run: Path, frame: pd.DataFrame, root: Path, limit: float) -> None:
        self.path, self.frame, self.root, self.limit = run / NAME, frame, root, limit
        self.listed: dict[str, dict[str, str]] = {}
        self._new: dict[str, dict[str, str]] = {}
        if self.path.exists():
            table = read_bad_files(self.path)
            self.listed = {row["path"]: row for row in table.to_dict("records")}

    def note(self, stage: str, step: int | None, problems: Sequence[Problem]) -> None:
        """Remember what this rank met; an image is listed once.

        Args:
            stage: name of the stage.
            step: 0-based, None where the stage has no steps.
            problems: from a batch or the check at the beginning.
        """
        for problem in problems:
            row = self.frame.iloc[problem.sample]
            name = str(row["path"])
            if name in self.listed or name in self._new:
                continue
            inside = problem.file.is_relative_to(self.root)
            self._new[name] = {
                "path": name,
                "file": str(problem.file.relative_to(self.root) if inside else problem.file.name),
                "reason": problem.reason,
                "label": "" if pd.isna(row["label"]) else str(int(row["label"])),
                "split": str(row["split"]),
                "stage": stage,
                "step": "" if step is None else str(step),
                "rank": str(distributed.rank()),
            }

    @property
    def pending(self) -> bool:
        """Whether this rank met bad files that the others have not heard of."""
        return bool(self._new)

    def share(self) -> None:
        """Let all ranks list what any has met; rank 0 writes the file and says so. All call it.

        Raises:
            InputError: too large a share of the images is bad; on every rank.
        """
        for rows in distributed.gather_objects(self._new):
            self._add({name: row for name, row in rows.items() if name not in self.listed})
        self._new = {}
        self._write()
        self.check()

    def begin(self, problems: Sequence[Problem]) -> None:
        """Let the list hold the files that are bad when a run begins or goes on; for rank 0 alone.

        Raises:
            InputError: too large a share of the images is bad.
        """
        self.note(CHECK, None, problems)
        bad = {str(self.frame["path"].iloc[problem.sample]) for problem in problems}
        self.listed = {name: row for name, row in self.listed.items() if name in bad}
        self._add(self._new)
        self._new = {}
        self._write()
        self.check()

    def check(self) -> None:
        """Refuse too large a share of bad images.

        Raises:
            InputError: names the first and the list.
        """
        count, used = len(self.listed), self._used
        if count > self.limit * used:
            first = next(iter(self.listed.values()))
            raise InputError(
                f"{count} of {used} images cannot be read ({count / used:.1%}); allowed: "
                f"data.bad_limit, {self.limit:.1%}; they are in {self.path}, the first is "
                f"{first['file']}: {first['reason']}"
            )

    def reason(self, path: str) -> str:
        """Why an image is not used; "" if nothing is known against it."""
        row = self.listed.get(path)
        return "" if row is None else f"{row['file']}: {row['reason']}"

    def summary(self) -> str:
        """One line with the counts of each set and label; "" if no image was skipped."""
        return in_words(pd.DataFrame(self.listed.values()), self._used)

    @property
    def _used(self) -> int:
        return int((self.frame["split"] != "unused").sum())

    def _add(self, rows: dict[str, dict[str, str]]) -> None:
        self.listed |= rows
        if not distributed.is_main():
            return
        for row in rows.values():
            when = row["stage"] + (f", step {row['step']}" if row["step"] else "")
            warnings.warn(
                f"{when}: {row['file']} cannot be read and is skipped: {row['reason']}",
                SkippedWarning,
                stacklevel=3,
            )

    def _write(self) -> None:
        if distributed.is_main() and (self.listed or self.path.exists()):
            table = pd.DataFrame(self.listed.values(), columns=list(COLUMNS))
            write_atomic(self.path, lambda path: table.to_csv(path, index=False))
