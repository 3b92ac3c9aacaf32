"""The losses' tests run on every backend that this machine has."""

import pytest
import torch

from selftaught.kernels.dispatch import VARIABLE, Request, refusal


@pytest.fixture(params=["reference", "cpp"])
def every_backend(request, monkeypatch):
    wanted = Request(op="ntxent", device=torch.device("cpu"), dtype=torch.float32, width=128)
    why = refusal(request.param, wanted)
    if why:
        pytest.skip(f"{request.param}: {why}")
    monkeypatch.setenv(VARIABLE, request.param)
    return request.param
