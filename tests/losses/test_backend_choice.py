"""A loss asks for the backend that its argument or, without one, the environment names."""

import pytest
import torch

from selftaught.kernels.dispatch import VARIABLE
from selftaught.losses import info_nce_loss, mad_loss, nearest_center, ntxent_loss, supcon_loss
from tests.losses.formulas import views

LABELS = torch.tensor([0, 1, -1, 0])
CALLS = {
    "ntxent": ntxent_loss,
    "ntxent over a group": lambda a, b, **more: ntxent_loss(a, b, group="world", **more),
    "supcon": lambda a, b, **more: supcon_loss(a, b, LABELS, **more),
    "info_nce": info_nce_loss,
    "nearest_center": nearest_center,
    "mad": lambda a, b, **more: mad_loss(a, b, LABELS * 0, **more),
}


@pytest.mark.parametrize("name", CALLS)
def test_argument_then_environment_then_the_best(name, monkeypatch):
    z = views(4, 8, 0.5)
    monkeypatch.setenv(VARIABLE, "cuda")
    with pytest.raises(ValueError, match="backend: 'cuda' cannot run"):
        CALLS[name](*z)
    for backend in ("reference", "auto"):
        CALLS[name](*z, backend=backend)
    monkeypatch.setenv(VARIABLE, "reference")
    with pytest.raises(ValueError, match="backend: 'cuda' cannot run"):
        CALLS[name](*z, backend="cuda")
