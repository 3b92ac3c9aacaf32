"""What every executor of a plan takes and gives."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from selftaught.data.images.bad_files import Problem
from selftaught.errors import InputError

# Whoever prepares films needs packs but no torch, whose import takes as long as many films.
if TYPE_CHECKING:
    from torch import Tensor

Request = tuple[int, np.ndarray]


class ImageBatch(NamedTuple):
    """One batch of views.

    Attributes:
        views: (B, V, 1, S, S) float32, contiguous, in `Augment.input_range`; on the device.
        masks: (B, V, 1, S, S) float32 in [0, 1] with the views' geometry, or None.
        ids: (B,) int64 sample ids, as requested; where samples are skipped, those that were taken:
            another id for each bad one, or fewer than requested.
        problems: of the samples that were skipped.
    """

    views: "Tensor"
    masks: "Tensor | None"
    ids: "Tensor"
    problems: tuple[Problem, ...] = ()


class Pipeline(Protocol):
    """From (epoch, sample ids) to batches of views; what they hold depends on nothing else."""

    def batches(self, requests: Iterable[Request]) -> Iterator[ImageBatch]:
        """Batches in the order of the requests, prepared ahead where there are workers."""

    def close(self) -> None:
        """Stop and join all workers; may be called twice."""

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def check_options(
    images: int,
    masks: Sequence[Path | None] | None,
    image_size: int,
    views: int,
    prefetch: int,
) -> None:
    """Refuse options that no executor takes.

    Raises:
        InputError: names the option, its value and what is allowed.
    """
    if not 8 <= image_size <= 8192:
        raise InputError(f"data.image_size {image_size}: allowed 8 to 8192")
    if views < 1:
        raise InputError(f"views {views}: allowed from 1")
    if masks is not None and len(masks) != images:
        raise InputError(f"{len(masks)} masks for {images} images; one for each is needed")
    if prefetch < 0:
        raise InputError(f"prefetch {prefetch}: allowed from 0")


def check_ids(ids: np.ndarray, images: int) -> None:
    """Refuse sample ids outside 0 to `images` - 1.

    Raises:
        ValueError: names the range.
    """
    if ids.size and not 0 <= ids.min() <= ids.max() < images:
        raise ValueError(f"ids {ids.min()} to {ids.max()}: allowed 0 to {images - 1}")
