"""The training step, where torch raises at every wait for the device."""

import pytest
import torch

from selftaught.errors import MachineError

STEPS = 30


@pytest.fixture
def toys():
    for package in ("cv2", "pandas", "safetensors", "tensorboard"):
        pytest.importorskip(package)
    from tests.training import toys

    return toys


def watched(event, **facts):
    """No wait is allowed from the third step to the last but one."""
    if event == "step":
        inside = 2 <= facts["step"] < STEPS - 1
        torch.cuda.set_sync_debug_mode("error" if inside else "default")


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "lars"])
def test_a_step_waits_for_nothing(tmp_path, toys, optimizer):
    stage = toys.Given(lambda step: {"views": torch.ones(4, 7, device="cuda")}, STEPS, lr=1e-3)
    try:
        task = toys.learn(
            tmp_path, toys.Pair().cuda(), stage, optimizer=optimizer, clip=1.0, on_event=watched
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(one.isfinite().all() for one in task.parameters())


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "lars"])
def test_a_bad_step_moves_nothing(tmp_path, toys, optimizer):
    def batch(step):
        return {"views": torch.full((4, 1), float("nan") if step == 20 else 1.0, device="cuda")}

    task = toys.Line().cuda()
    with pytest.raises(MachineError, match="step 20: not finite"):
        toys.learn(tmp_path, task, toys.Given(batch, STEPS, lr=1e-3), optimizer=optimizer)
    right = toys.learn(
        tmp_path / "right", toys.Line().cuda(), toys.Given(batch, 20, lr=1e-3), optimizer=optimizer
    )
    assert torch.equal(task.weight, right.weight)
