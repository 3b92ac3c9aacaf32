"""The fine-tuning step holds no (N, K) tensor, loops over no rows and waits for no device.

What is recorded is everything around the fused op; inside it, tests/kernels bounds the memory.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from selftaught.kernels.dispatch import VARIABLE, Request, refusal
from selftaught.methods.spheres import Spheres, SpheresOptions
from selftaught.models.network import Network

IMAGES, CENTERS = 37, 53


class Recorder(TorchDispatchMode):
    """Name and sizes of every op's results, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.seen.append((str(function), tuple(value.shape)))
        if "_local_scalar_dense" in str(function):
            self.seen.append(("wait", ()))
        return result


def step(images):
    task = Spheres(SpheresOptions(centers=CENTERS), Network())
    task.centers.normal_()
    batch = {
        "views": torch.rand(images, 1, 1, 32, 32),
        "semi_label": torch.arange(images) % 3 - 1,
    }
    with Recorder() as recorder:
        task(batch)["loss"].backward()
    return recorder.seen


@pytest.fixture
def fused(monkeypatch):
    wanted = Request(op="mad", device=torch.device("cpu"), dtype=torch.float32, width=128)
    if refusal("cpp", wanted):
        pytest.skip(refusal("cpp", wanted))
    monkeypatch.setenv(VARIABLE, "cpp")


def test_no_matrix_no_row_loop_no_wait(fused):
    seen = step(IMAGES)
    shapes = [shape for _, shape in seen]
    assert (IMAGES, CENTERS) not in shapes and (CENTERS, IMAGES) not in shapes
    assert all(torch.Size(shape).numel() != IMAGES * CENTERS for shape in shapes)
    assert not [name for name, _ in seen if name == "wait"]
    assert len(step(2 * IMAGES)) == len(seen)
    names = [name for name, _ in seen if "selftaught" in name]
    assert {"selftaught.mad.default", "selftaught.mad_backward.default"} == set(names)
