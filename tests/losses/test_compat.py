"""Same value and gradient as lightly, pytorch-metric-learning and open_clip."""

import pytest
import torch

from selftaught.losses import compat
from tests.losses.formulas import views


def both_gradients(loss, *inputs):
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_lightly_ntxent(temperature):
    lightly = pytest.importorskip("lightly.loss")
    z = [v.float().requires_grad_() for v in views(13, 17, 0.5)]
    theirs = both_gradients(lightly.NTXentLoss(temperature)(*z), *z)
    torch.testing.assert_close(
        both_gradients(compat.NTXentLoss(temperature)(*z), *z), theirs, rtol=1e-4, atol=1e-6
    )


def test_lightly_ntxent_with_memory_bank():
    lightly = pytest.importorskip("lightly.loss")
    theirs = lightly.NTXentLoss(0.2, memory_bank_size=(20, 17))
    ours = compat.NTXentLoss(0.2, memory_bank_size=(20, 17))
    torch.testing.assert_close(ours.bank.norm(dim=1), torch.ones(20))
    ours.bank.copy_(theirs.memory_bank.bank)
    for step in range(6):
        z = [v.float().requires_grad_() for v in views(7, 17, 0.5, seed=step)]
        expected = both_gradients(theirs(*z), *z)
        torch.testing.assert_close(both_gradients(ours(*z), *z), expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(ours.bank, theirs.memory_bank.bank)
    held = ours.bank.clone()
    with torch.no_grad():
        ours(*(v.detach() for v in z))
    assert torch.equal(ours.bank, held)


@pytest.mark.parametrize(
    "labels",
    [
        torch.arange(12) % 3,
        torch.tensor([0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8, -5]),
        torch.zeros(12, dtype=torch.int64),
        torch.arange(12),
    ],
    ids=["classes", "rows without positives", "one class", "no positives"],
)
def test_pytorch_metric_learning_supcon(labels):
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    z = views(12, 17, 0.5)[0].float().requires_grad_()
    theirs = both_gradients(losses.SupConLoss(temperature=0.2)(z, labels), z)
    ours = both_gradients(compat.SupConLoss(temperature=0.2)(z, labels), z)
    torch.testing.assert_close(ours[0], torch.as_tensor(theirs[0]).float().reshape(()))
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-4, atol=1e-6)


def test_open_clip():
    open_clip_loss = pytest.importorskip("open_clip.loss")
    z = [torch.nn.functional.normalize(v.float()).requires_grad_() for v in views(13, 17, 0.5)]
    scale = torch.tensor(14.3, requires_grad=True)
    bias = torch.tensor(0.5, requires_grad=True)
    theirs = open_clip_loss.ClipLoss()(*z, scale, bias)
    ours = compat.ClipLoss()(*z, scale, bias)
    torch.testing.assert_close(
        both_gradients(ours, *z, scale, bias),
        both_gradients(theirs, *z, scale, bias),
        rtol=1e-4,
        atol=1e-6,
    )
    assert torch.equal(compat.ClipLoss()(*z, 14.3, output_dict=True)["contrastive_loss"], ours)


def test_what_cannot_be_honoured_is_refused():
    z, y = torch.randn(4, 8), torch.zeros(4, dtype=torch.int64)
    calls = {
        "temperature": lambda: compat.NTXentLoss(0.0),
        "memory_bank_size: must be 0 or (rows, D), got 64": lambda: compat.NTXentLoss(0.5, 64),
        "out0: width D is 8, but memory_bank_size has D = 5": lambda: compat.NTXentLoss(
            0.5, (9, 5)
        )(z, z),
        "indices_tuple: must be None": lambda: compat.SupConLoss()(z, y, (y, y, y)),
        "ref_emb: must be None": lambda: compat.SupConLoss()(z, y, None, z),
        "labels: must be (4,) integers": lambda: compat.SupConLoss()(z, y[:2]),
        "use_horovod: must be False": lambda: compat.ClipLoss(use_horovod=True),
        "gather_with_grad: must be True": lambda: compat.ClipLoss(world_size=2),
        "world_size: got 2, but 1": lambda: compat.ClipLoss(True, True, world_size=2)(z, z, 1.0),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError) as caught:
            call()
        assert message in str(caught.value)
