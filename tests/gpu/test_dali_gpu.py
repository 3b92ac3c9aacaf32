"""The DALI graph on a GPU: the views of the same graph on the CPU, in device memory."""

import numpy as np
import pytest
import torch

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed (Linux x86-64, extra gpu)")

from selftaught.data.pipeline import ImageBatch, open_pipeline
from selftaught.data.pipeline.dali import DaliPipeline
from tests.data.pipeline.dali_cases import (
    OPERATORS,
    Files,
    N,
    all_of,
    files,
    opened,
    packed,
    requests,
    rows,
    settings,
)

__all__ = ["files", "packed"]


def levels_apart(one: ImageBatch, other: ImageBatch, scale: int) -> torch.Tensor:
    return (one.views.cpu() - other.views.cpu()).abs().mean((2, 3, 4)) * 255 / scale


@pytest.mark.parametrize("name", OPERATORS)
def test_views_agree_with_the_cpu(files: Files, packed: Files, name: str) -> None:
    """Half a level for the JPEG decoder; packs hold no JPEG."""
    augment = OPERATORS[name]
    for source, limit in ((files, 1.0), (packed, 0.1)):
        made = all_of(source, augment=augment, device="cuda")
        assert made.views.is_cuda and made.masks is not None and made.masks.is_cuda
        expected = all_of(source, augment=augment)
        assert levels_apart(made, expected, augment.mask_scale).max() < limit
        assert expected.masks is not None
        assert (made.masks.cpu() - expected.masks).abs().mean() * 255 < 0.1


def test_packs_are_resident_where_they_fit(packed: Files) -> None:
    with opened(packed, device="cuda") as pipeline:
        assert pipeline._items._resident is not None
    bits = [
        all_of(packed, device="cuda", on_device=mode).views for mode in ("always", "never", "auto")
    ]
    assert torch.equal(bits[0], bits[1]) and torch.equal(bits[0], bits[2])


def test_bits_depend_on_seed_epoch_sample_and_view_only(files: Files) -> None:
    with opened(files, device="cuda") as pipeline:
        asked = requests((0, list(range(N))), (1, list(range(N))))
        expected = rows(pipeline.batches(asked), [0, 1])
    order = requests((1, [6, 2]), (0, [0]), (1, [1, 0, 5, 3, 7]), (0, [4, 7, 6]))
    with opened(files, device="cuda", prefetch=1, workers=3) as pipeline:
        got = rows(pipeline.batches(order), [1, 0, 1, 0])
    assert all(torch.equal(got[key], expected[key]) for key in got)


def test_batches_stay_as_they_are_while_the_consumer_works(packed: Files) -> None:
    """Freed memory must not be written to before the consumer's stream has read it."""
    plans = requests(*[(epoch, [0, 1, 2, 3]) for epoch in range(40)])
    weight = torch.randn(2048, 2048, device="cuda")
    sums = []
    with opened(packed, device="cuda") as pipeline:
        for batch in pipeline.batches(plans):
            for _ in range(20):
                weight = torch.tanh(weight @ weight)
            sums.append(batch.views.double().sum((1, 2, 3, 4)))
            del batch
    with opened(packed, device="cuda", prefetch=0) as pipeline:
        for batch, total in zip(pipeline.batches(plans), sums, strict=True):
            torch.cuda.synchronize()
            assert torch.equal(batch.views.double().sum((1, 2, 3, 4)), total)


def test_auto_takes_dali_on_a_gpu(files: Files) -> None:
    with open_pipeline("auto", device="cuda", **settings(files)) as pipeline:
        assert isinstance(pipeline, DaliPipeline)
        (batch,) = pipeline.batches([(0, np.arange(3))])
    assert batch.views.is_cuda and not batch.ids.is_cuda
