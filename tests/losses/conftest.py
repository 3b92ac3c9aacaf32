"""The losses' tests run on every backend that this machine has."""

import os

import pytest
import torch

from selftaught.kernels.dispatch import VARIABLE, Request, refusal

# tests/kernels/test_triton_tables.py runs the same table again in Triton's interpreter.
BACKENDS = ["triton"] if os.environ.get("TRITON_INTERPRET") == "1" else ["reference", "cpp"]


@pytest.fixture(params=BACKENDS)
def every_backend(request, monkeypatch):
    wanted = Request(op="ntxent", device=torch.device("cpu"), dtype=torch.float32, width=128)
    why = refusal(request.param, wanted)
    if why:
        pytest.skip(f"{request.param}: {why}")
    monkeypatch.setenv(VARIABLE, request.param)
    return request.param
