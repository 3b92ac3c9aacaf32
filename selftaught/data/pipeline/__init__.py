"""Executors of an augmentation plan: what they promise, and how one is chosen.

An executor gets the plan's arrays (`selftaught.data.plan.draw`) and draws nothing itself, so all
executors make the same views up to rounding, in any order and with any number of workers.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np

from selftaught.data.augment import Augment
from selftaught.data.images.bad_files import Problem
from selftaught.errors import InputError

# Whoever prepares films needs packs but no torch, whose import takes as long as many films.
if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Batch", "Pipeline", "Request", "has_dali", "open_pipeline"]

Request = tuple[int, np.ndarray]


class Batch(NamedTuple):
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
    augment: Augment,
    device: "torch.device | str" = "cpu",
    **options: Any,
) -> Pipeline:
    """Open the executor for `data.pipeline`.

    Args:
        kind: opencv = CPU threads; dali = NVIDIA DALI, on a GPU or on the CPU; auto = dali for
            the composed order on a GPU where it is installed, else opencv.
        paths: image files; a sample's id is its position.
        augment: what may happen to a view.
        device: where the batches will be used; dali works there, opencv gives CPU tensors.
        options: as for `OpenCVPipeline`.

    Raises:
        InputError: an executor that is not installed, or cannot do what `augment` asks.
    """
    if kind not in ("auto", "opencv", "dali"):
        raise InputError(f"data.pipeline {kind!r}: allowed: auto, opencv, dali")
    import torch

    device = torch.device(device)
    if kind == "auto":
        able = augment.order == "composed" and device.type == "cuda" and has_dali()
        kind = "dali" if able else "opencv"
    if kind == "dali":
        if not has_dali():
            raise InputError(
                "data.pipeline dali: NVIDIA DALI is not installed (pip install 'selftaught[gpu]', "
                "Linux x86-64); allowed here: auto, opencv"
            )
        from selftaught.data.pipeline.dali import DaliPipeline

        return DaliPipeline(paths, augment=augment, device=device, **options)
    from selftaught.data.pipeline.opencv import OpenCVPipeline

    return OpenCVPipeline(paths, augment=augment, **options)


def has_dali() -> bool:
    """Whether NVIDIA DALI is installed and loads."""
    try:
        import nvidia.dali  # noqa: F401
    except (ImportError, OSError):
        return False
    return True
