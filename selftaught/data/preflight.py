"""Read every image once before a long job: bad files are found, and perceptual hashes made."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from selftaught.data.images.bad_files import Problem
from selftaught.data.images.decode import read_grey
from selftaught.data.images.limits import BadImage
from selftaught.data.pipeline.sample import read_mask
from selftaught.data.split.duplicates import BYTES, perceptual_hash
from selftaught.errors import InputError


class Checked(NamedTuple):
    """What is known of N images once they have been read.

    Attributes:
        problems: of the images that cannot be used, in their order.
        hashes: (N, 32) uint8 perceptual hashes, 0 where there is none.
        hashed: (N,) bool, where there is one: not of bad images and of those without contrast.
    """

    problems: list[Problem]
    hashes: np.ndarray
    hashed: np.ndarray


def check_images(
    images: Sequence[Path],
    masks: Sequence[Path | None] | None = None,
    *,
    hashes: bool = False,
    workers: int | Literal["auto"] = "auto",
    stop: Callable[[], bool] = lambda: False,
    done: Callable[[int], None] = lambda count: None,
) -> Checked:
    """Read all images and their masks strictly.

    Args:
        images: N files; an image's position is its `Problem.sample`.
        masks: for each its mask or None.
        hashes: make perceptual hashes.
        workers: threads; auto = one for each core.
        stop: asked before each image; once it is true the rest is left unread.
        done: told how many images are behind us.

    Raises:
        MachineError: the disk cannot be read.
    """
    made = np.zeros((len(images), BYTES), np.uint8)
    hashed = np.zeros(len(images), bool)

    def check(position: int) -> Problem | None:
        if stop():
            return None
        mask = None if masks is None else masks[position]
        try:
            grey = read_grey(images[position])
            if mask is not None:
                read_mask(mask, images[position], grey.shape)
        except BadImage as error:
            return Problem(position, error.path, error.reason)
        found = perceptual_hash(grey) if hashes else None
        if found is not None:
            made[position], hashed[position] = found, True
        return None

    threads = (os.cpu_count() or 1) if workers == "auto" else max(workers, 1)
    problems = []
    with ThreadPoolExecutor(threads) as pool:
        for count, problem in enumerate(pool.map(check, range(len(images))), 1):
            done(count)
            if problem is not None:
                problems.append(problem)
    return Checked(problems, made, hashed)


def refuse_bad(problems: Sequence[Problem], images: int) -> None:
    """End where there are bad images.

    Args:
        problems: as `check_images` found them.
        images: how many were read.

    Raises:
        InputError: names the first bad file with its reason and counts the others.
    """
    if not problems:
        return
    first, others = problems[0], ""
    if len(problems) > 1:
        others = f" ({len(problems)} of {images} images cannot be read)"
    raise InputError(f"{first.file}: {first.reason}{others}")
