"""Executors of an augmentation plan: what they promise, and how one is chosen.

An executor gets the plan's arrays (`selftaught.data.plan.draw`) and draws nothing itself, so all
executors make the same views up to rounding, in any order and with any number of workers.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selftaught.data.augment import Augment
from selftaught.data.pipeline.cache import CacheBudget
from selftaught.data.pipeline.executor import ImageBatch, Pipeline, Request
from selftaught.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["ImageBatch", "CacheBudget", "Pipeline", "Request", "has_dali", "open_pipeline"]


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
