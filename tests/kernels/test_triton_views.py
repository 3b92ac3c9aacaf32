"""Memory of a step of NT-Xent and SupCon in Triton, of full size, with kernels that do nothing."""

import pytest
import torch

pytest.importorskip("triton")

from selftaught.kernels.triton import factors, log_sums, merging, views, weighted_sums

KERNELS = {
    views: ("prepare_views", "finish_views"),
    log_sums: ("sum_tiles",),
    merging: ("merge_sums",),
    factors: ("find_factors",),
    weighted_sums: ("weighted_tiles",),
}


class Idle:
    """A kernel that is launched and writes nothing."""

    def __getitem__(self, grid):
        return lambda *_, **__: None


def peak_bytes(work):
    with torch.profiler.profile(profile_memory=True) as profile:
        kept = work()
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    del kept
    return most


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_65536_rows(labelled, dtype, monkeypatch):
    for module, names in KERNELS.items():
        for name in names:
            monkeypatch.setattr(module, name, Idle())
    images, width = 32768, 128
    z1, z2 = (torch.empty(images, width, dtype=dtype) for _ in range(2))
    labels = torch.zeros(images, dtype=torch.int64) if labelled else None
    settings = (z1, z2, labels, None, 0.5, True, "mean", "auto")

    def step():
        results = views.forward(*settings)
        return views.backward(results[0], *settings, *results, [True, True, False])

    gradients = 2 * z1.numel() * z1.element_size()
    extra = peak_bytes(step) - gradients
    assert 20e6 < extra < 80e6, f"{extra / 1e6:.1f} MB"
