"""One pass over the files before a long job: their stamps, the bad ones, perceptual hashes."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from selftaught.data.images.bad_files import Problem
from selftaught.data.images.decode import read_grey
from selftaught.data.images.limits import BadImage
from selftaught.data.images.masks import read_mask
from selftaught.data.images.stamps import Stamp, stamp, stamp_name
from selftaught.data.split.duplicates import BYTES, perceptual_hash
from selftaught.errors import InputError
from selftaught.workers import worker_count


class Survey(NamedTuple):
    """What is known of N images once they have been read.

    Attributes:
        problems: of the images that cannot be used, in their order.
        hashes: (N, 32) uint8 perceptual hashes, 0 where there is none.
        hashed: (N,) bool, where there is one: not of bad images and of those without contrast.
        stamps: what the files were, images before masks, by `stamp_name`; a pack is one file.
    """

    problems: list[Problem]
    hashes: np.ndarray
    hashed: np.ndarray
    stamps: dict[str, Stamp]

    def refuse_problems(self) -> None:
        """End where there are bad images.

        Raises:
            InputError: names the first bad file with its reason and counts the others.
        """
        if not self.problems:
            return
        first, count, images = self.problems[0], len(self.problems), len(self.hashed)
        others = f" ({count} of {images} images cannot be read)" if count > 1 else ""
        raise InputError(f"{first.file}: {first.reason}{others}")


def survey(
    images: Sequence[Path],
    masks: Sequence[Path | None] | None = None,
    *,
    root: Path | None = None,
    hashes: bool = False,
    workers: int | Literal["auto"] = "auto",
    stop: Callable[[], bool] = lambda: False,
    done: Callable[[int], None] = lambda count: None,
) -> Survey:
    """Read all images and their masks strictly, each file from the disk once.

    A file's bytes are hashed right before they are decoded, so that the second reading comes from
    the system's file cache.

    Args:
        images: N files; an image's position is its `Problem.sample`.
        masks: for each its mask or None.
        root: folder that the names of stamps start from; None: no stamps.
        hashes: make perceptual hashes.
        workers: threads; auto = one for each core.
        stop: asked before each image; once it is true the rest is left unread.
        done: called with the number of images read so far.

    Raises:
        MachineError: the disk cannot be read.
    """
    made = np.zeros((len(images), BYTES), np.uint8)
    hashed = np.zeros(len(images), bool)
    covers = [None] * len(images) if masks is None else masks
    turns = {} if root is None else _turns(root, images, covers)
    stamped: dict[str, Stamp] = {}

    def read(position: int) -> Problem | None:
        if stop():
            return None
        image, mask = images[position], covers[position]
        for path in (image, mask):
            if root is not None and path is not None:
                name = stamp_name(path, root)
                if turns[name] == position and name not in stamped:
                    stamped[name] = stamp(root / name)
        try:
            grey = read_grey(image)
            if mask is not None:
                read_mask(mask, image, grey.shape)
        except BadImage as error:
            return Problem(position, error.path, error.reason)
        bits = perceptual_hash(grey) if hashes else None
        if bits is not None:
            made[position], hashed[position] = bits, True
        return None

    problems = []
    with ThreadPoolExecutor(max(worker_count(workers), 1)) as pool:
        for count, problem in enumerate(pool.map(read, range(len(images))), 1):
            done(count)
            if problem is not None:
                problems.append(problem)
    stamps = {name: stamped[name] for name in turns if name in stamped}
    return Survey(problems, made, hashed, stamps)


def _turns(root: Path, *columns: Sequence[Path | None]) -> dict[str, int]:
    """The position of the first image that each file belongs to, by the name of its stamp."""
    turns: dict[str, int] = {}
    for column in columns:
        for position, path in enumerate(column):
            if path is not None:
                turns.setdefault(stamp_name(path, root), position)
    return turns
