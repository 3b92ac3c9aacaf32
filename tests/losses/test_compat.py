"""Same value and gradient as lightly, pytorch-metric-learning and open_clip."""

import pytest
import torch

from selftaught.kernels.dispatch import VARIABLE
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


def test_the_bank_of_lightly_in_double_and_past_its_end():
    """float64 keeps its digits; a batch that reaches the end, or is larger, is cut there."""
    lightly = pytest.importorskip("lightly.loss")
    for rows in (20, 7, 5):
        theirs = lightly.NTXentLoss(0.2, memory_bank_size=(rows, 17)).double()
        ours = compat.NTXentLoss(0.2, memory_bank_size=(rows, 17)).double()
        # The first rows have the lengths of float32's digits; we divide by them, lightly does not.
        theirs.memory_bank.bank = torch.nn.functional.normalize(theirs.memory_bank.bank)
        ours.bank.copy_(theirs.memory_bank.bank)
        for step in range(7):
            z = [v.requires_grad_() for v in views(7, 17, 0.5, seed=step)]
            expected = both_gradients(theirs(*z), *z)
            found = both_gradients(ours(*z), *z)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(ours.bank, theirs.memory_bank.bank, rtol=0, atol=1e-15)
            assert torch.equal(ours.bank_ptr, theirs.memory_bank.bank_ptr)


def test_a_bank_is_made_and_kept_like_lightlys():
    lightly = pytest.importorskip("lightly.loss")
    torch.set_default_dtype(torch.float64)
    try:
        theirs = lightly.NTXentLoss(0.5, [20, 9])
        ours = compat.NTXentLoss(0.5, [20, 9])
    finally:
        torch.set_default_dtype(torch.float32)
    assert ours.bank.dtype == theirs.memory_bank.bank.dtype == torch.float32
    assert ours.bank.shape == theirs.memory_bank.bank.shape
    ours.load_state_dict(theirs.state_dict(), strict=True)
    z = views(4, 9, 0.5)
    for size in (0, (0,), (0, 9)):
        expected = lightly.NTXentLoss(0.5, size)(*z)
        torch.testing.assert_close(compat.NTXentLoss(0.5, memory_bank_size=size)(*z), expected)
    # Only keys of a call whose first view requires grad enter.
    held = ours.bank.clone()
    ours(out0=z[0].float(), out1=z[1].float().requires_grad_())
    assert torch.equal(ours.bank, held)
    ours(out0=z[0].float().requires_grad_(), out1=z[1].float())
    torch.testing.assert_close(ours.bank[:4], torch.nn.functional.normalize(z[1].float()))


PML_LABELS = {
    "classes": torch.arange(12) % 3,
    "rows without positives": torch.tensor([0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8, -5]),
    "one class": torch.zeros(12, dtype=torch.int64),
    "no positives": torch.arange(12),
    "float": torch.tensor([0.5, 0.5, -0.0, 0.0, 1e300, 1e300, -1.25, -1.25, 3, 4, 5, 0.5]).double(),
    "bfloat16": (torch.arange(12) % 3).bfloat16() / 3,
    "infinite": torch.tensor([float("inf")] * 3 + [-float("inf")] * 3 + [0.0] * 6),
    "not a number": torch.tensor([float("nan")] * 2 + [1.0, 1.0, 2.0, 2.0, 2.0, 3.0] + [0.0] * 4),
    "bool": torch.arange(12) % 3 == 0,
    "uint8": (torch.arange(12) % 3).to(torch.uint8),
    "int16": (torch.arange(12) % 5 - 2).to(torch.int16),
}


@pytest.mark.parametrize("name", PML_LABELS)
def test_labels_of_pytorch_metric_learning(name):
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    labels = PML_LABELS[name]
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-11)):
        z = views(12, 17, 0.5)[0].to(dtype).requires_grad_()
        theirs = both_gradients(losses.SupConLoss(temperature=0.2)(z, labels), z)
        ours = both_gradients(compat.SupConLoss(temperature=0.2)(z, labels), z)
        assert ours[0].dtype == dtype
        torch.testing.assert_close(ours[0], torch.as_tensor(theirs[0]).to(dtype).reshape(()))
        torch.testing.assert_close(ours[1], theirs[1], rtol=tolerance, atol=tolerance / 100)


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_small_batches_of_pytorch_metric_learning(rows):
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    z = views(3, 17, 0.5)[0].float()[:rows].requires_grad_()
    for labels in (torch.zeros(rows), torch.arange(rows)):
        theirs = both_gradients(losses.SupConLoss()(z, labels), z)
        ours = both_gradients(compat.SupConLoss()(z, labels), z)
        torch.testing.assert_close(ours, theirs, check_dtype=False)


def test_scales_of_open_clip():
    """A scale may be a number, a parameter of one element, of half precision."""
    open_clip_loss = pytest.importorskip("open_clip.loss")
    z = [torch.nn.functional.normalize(v.float()) for v in views(5, 17, 0.5)]
    for scale in (10, 10.0, torch.tensor(10), torch.tensor([10.0]), torch.tensor(10.0).double()):
        expected = open_clip_loss.ClipLoss()(*z, scale)
        torch.testing.assert_close(compat.ClipLoss()(*z, scale), expected, check_dtype=False)
    half = torch.nn.Parameter(torch.tensor(10.0).half())
    compat.ClipLoss()(image_features=z[0], text_features=z[1], logit_scale=half).backward()
    assert half.grad.dtype == torch.float16 and half.grad != 0


DROP_INS = {
    "lightly": (lambda: compat.NTXentLoss(0.2), 2),
    "lightly, bank": (lambda: compat.NTXentLoss(0.2, (9, 8)), 2),
    "pytorch-metric-learning": (lambda: lambda a: compat.SupConLoss()(a, a[:, 0].argsort() % 2), 1),
    "open_clip": (lambda: lambda a, b: compat.ClipLoss()(a, b, 5.0), 2),
}


@pytest.mark.parametrize("name", DROP_INS)
def test_a_nan_is_a_nan_loss_as_in_the_originals(name):
    """Which a GradScaler meets after an overflow, and skips."""
    make, inputs = DROP_INS[name]
    first, *others = (v.float() for v in views(4, 8, 0.5)[:inputs])
    weight = torch.nn.Parameter(torch.tensor(1.0))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    for factor, moves in ((float("inf"), False), (1.0, True)):
        before = weight.detach().clone()
        loss = make()(weight * factor * first, *others)
        assert loss.isfinite() == moves
        scaler.scale(loss + weight).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert (weight != before) == moves


@pytest.mark.parametrize("name", DROP_INS)
def test_the_environment_chooses_the_backend(name, monkeypatch):
    make, inputs = DROP_INS[name]
    monkeypatch.setenv(VARIABLE, "cuda")
    with pytest.raises(ValueError, match="backend: 'cuda' cannot run"):
        make()(*views(4, 8, 0.5)[:inputs])
    monkeypatch.setenv(VARIABLE, "reference")
    assert make()(*views(4, 8, 0.5)[:inputs]).isfinite()


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
        "ref_labels: must be None": lambda: compat.SupConLoss()(z, y, ref_labels=y),
        "keep pytorch_metric_learning's": lambda: compat.SupConLoss()(z, y, ref_emb=z),
        "labels: must have shape (4,), got (2,)": lambda: compat.SupConLoss()(z, y[:2]),
        "labels: must be a tensor of real numbers, got NoneType": lambda: compat.SupConLoss()(z),
        "labels: must be a tensor of real numbers, got torch.complex64": (
            lambda: compat.SupConLoss()(z, torch.zeros(4, dtype=torch.complex64))
        ),
        "logit_scale: must be a finite number above 0, got 0": lambda: compat.ClipLoss()(z, z, 0),
        "use_horovod: must be False": lambda: compat.ClipLoss(use_horovod=True),
        "gather_with_grad: must be True": lambda: compat.ClipLoss(world_size=2),
        "world_size: got 2, but 1": lambda: compat.ClipLoss(True, True, world_size=2)(z, z, 1.0),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError) as caught:
            call()
        assert message in str(caught.value)
