"""Executors of an augmentation plan: what they promise, and how one is chosen.

An executor gets the plan's arrays (`selftaught.data.plan.draw`) and draws nothing itself, so all
executors make the same views up to rounding, in any order and with any number of workers.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from selftaught.errors import InputError

__all__ = ["Batch", "Pipeline", "Request", "open_pipeline"]

Request = tuple[int, np.ndarray]


class Batch(NamedTuple):
    """One batch of views.

    Attributes:
        views: (B, V, 1, S, S) float32, contiguous, in `Augment.input_range`.
        masks: (B, V, 1, S, S) float32 in [0, 1] with the views' geometry, or None.
        ids: (B,) int64 sample ids, as requested.
    """

    views: Tensor
    masks: Tensor | None
    ids: Tensor


class Pipeline(Protocol):
    """From (epoch, sample ids) to batches of views; what they hold depends on nothing else."""

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """Batches in the order of the requests, prepared ahead where there are workers."""

    def close(self) -> None:
        """Stop and join all workers; may be called twice."""

    def __enter__(self) -> "Pipeline": ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def open_pipeline(
    kind: Literal["auto", "opencv", "dali"],
    *,
    paths: Sequence[Path],
    **options: Any,
) -> Pipeline:
    """Open the executor for `data.pipeline`.

    Args:
        kind: opencv = CPU threads; auto = the best executor there is.
        paths: image files; a sample's id is its position.
        options: as for `OpenCVPipeline`.

    Raises:
        InputError: an executor that this version does not have.
    """
    if kind == "dali":
        raise InputError(
            "data.pipeline dali: the DALI executor is not part of this version; "
            "allowed: auto, opencv"
        )
    if kind not in ("auto", "opencv"):
        raise InputError(f"data.pipeline {kind!r}: allowed: auto, opencv, dali")
    from selftaught.data.pipeline.opencv import OpenCVPipeline

    return OpenCVPipeline(paths, **options)
