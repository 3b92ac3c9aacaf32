"""What people do with a loss that is a module: print, copy, save, move and look it up."""

import copy
import inspect
import io
import pickle
import pydoc

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from selftaught import losses
from selftaught.losses import compat
from tests.losses.formulas import views

Z1, Z2 = (z.float() for z in views(6, 8, 0.5))
LABELS = torch.tensor([0, 1, 0, -1, 1, 1])
# A module with settings unlike the defaults, and the tensors it is called with.
MODULES = {
    "NTXentLoss": (lambda: losses.NTXentLoss(0.2, normalize=False), (Z1, Z2)),
    "SupConLoss": (lambda: losses.SupConLoss(0.2, reduction="sum"), (Z1, Z2, LABELS)),
    "InfoNCELoss": (lambda: losses.InfoNCELoss(0.2, symmetric=True), (Z1, Z2)),
    "MADLoss": (lambda: losses.MADLoss(Z2[:3], eta=0.5), (Z1, LABELS.clamp(max=1))),
    "DeepSADLoss": (lambda: losses.DeepSADLoss(Z2[0], eps=0.1), (Z1, LABELS.clamp(max=1))),
    "learned temperature": (
        lambda: losses.NTXentLoss(nn.Parameter(torch.tensor(0.2))),
        (Z1, Z2),
    ),
    "lightly": (lambda: compat.NTXentLoss(0.2), (Z1, Z2)),
    "lightly, bank": (lambda: compat.NTXentLoss(0.2, memory_bank_size=(5, 8)), (Z1, Z2)),
    "pytorch-metric-learning": (lambda: compat.SupConLoss(0.2), (Z1, LABELS)),
    "open_clip": (lambda: compat.ClipLoss(local_loss=True), (Z1, Z2, 5.0)),
}
every_module = pytest.mark.parametrize("name", MODULES)


def saved_and_loaded(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@every_module
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module)), saved_and_loaded],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_copies_give_the_same(name, copied):
    make, inputs = MODULES[name]
    module = make()
    twin = copied(module)
    assert repr(twin) == repr(module)
    assert torch.equal(twin(*inputs), module(*inputs))


@every_module
def test_state_is_loaded_strictly(name):
    make, inputs = MODULES[name]
    one, other = make(), make()
    other.load_state_dict(one.state_dict(), strict=True)
    assert set(one.state_dict()) == {
        *(key for key, _ in one.named_parameters()),
        *(key for key in ("centers", "active") if isinstance(one, losses.MADLoss)),
    }


def test_repr_shows_the_settings():
    assert repr(MODULES["NTXentLoss"][0]()) == (
        "NTXentLoss(temperature=0.2, normalize=False, reduction='mean', group=None, "
        "exchange='gather', backend=None, precision='auto', check_values=True)"
    )
    assert "temperature=0.2," in repr(MODULES["learned temperature"][0]())
    assert "Parameter" in repr(MODULES["learned temperature"][0]().to("meta"))
    assert repr(MODULES["lightly, bank"][0]()) == (
        "NTXentLoss(temperature=0.2, memory_bank_size=(5, 8), gather_distributed=False)"
    )
    assert repr(compat.SupConLoss(0.2)) == "SupConLoss(temperature=0.2)"
    assert repr(compat.ClipLoss(True)) == (
        "ClipLoss(local_loss=True, gather_with_grad=False, rank=0, world_size=1)"
    )


@pytest.mark.parametrize(
    "module, function, left_out",
    [
        (losses.NTXentLoss, losses.ntxent_loss, set()),
        (losses.SupConLoss, losses.supcon_loss, set()),
        (losses.InfoNCELoss, losses.info_nce_loss, {"negatives"}),
        (losses.MADLoss, losses.mad_loss, {"active"}),
        (losses.DeepSADLoss, losses.mad_loss, {"active"}),
    ],
)
def test_signature_and_help_show_the_options_of_the_function(module, function, left_out):
    def options(callable_):
        parameters = inspect.signature(callable_).parameters.values()
        return {p.name: (p.default, p.annotation) for p in parameters if p.default is not p.empty}

    expected = options(function)
    assert options(module) == {name: expected[name] for name in expected if name not in left_out}
    text = pydoc.plain(pydoc.render_doc(module))
    for name in options(module):
        assert f"{name}: " in text
    with pytest.raises(TypeError, match="unexpected keyword argument 'temprature'"):
        module(Z1[0], temprature=0.1)


@pytest.mark.parametrize("name", ["NTXentLoss", "SupConLoss", "InfoNCELoss", "MADLoss"])
def test_every_setting_is_kept(name):
    given = {"temperature": 0.9, "normalize": False, "reduction": "sum", "group": "world"}
    given |= {"symmetric": True, "in_batch": False, "backend": "cuda", "precision": "bf16"}
    given |= {"exchange": "ring", "check_values": False, "eta": 2.0, "eps": 0.3}
    first = (Z2[:3],) if name == "MADLoss" else ()
    module = getattr(losses, name)
    usual = module(*first).settings()
    assert set(usual) == set(inspect.signature(module).parameters) - {"centers"}
    assert all(given[setting] != value for setting, value in usual.items())
    for setting in usual:
        settings = module(*first, **{setting: given[setting]}).settings()
        assert settings == usual | {setting: given[setting]}
    if name == "MADLoss":
        all_given = {setting: given[setting] for setting in usual}
        assert losses.DeepSADLoss(Z2[0], **all_given).settings() == all_given


@every_module
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_moved_to_another_dtype(name, dtype):
    make, inputs = MODULES[name]
    inputs = [t.to(dtype) if isinstance(t, torch.Tensor) and t.is_floating_point() else t
              for t in inputs]  # fmt: skip
    value = make().to(dtype)(*inputs)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.isfinite()


# A bank would move on twice, before the forward pass is run again; so does lightly's.
@pytest.mark.parametrize("name", [name for name in MODULES if "bank" not in name])
def test_checkpointing_inference_and_determinism(name):
    make, inputs = MODULES[name]
    module = make()
    with torch.inference_mode():
        expected = module(*inputs)
    leaf = inputs[0].clone().requires_grad_()
    torch.use_deterministic_algorithms(True)
    try:
        loss = checkpoint(copy.deepcopy(module), leaf, *inputs[1:], use_reentrant=False)
        loss.backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(loss.detach(), expected)
    again = inputs[0].clone().requires_grad_()
    module(again, *inputs[1:]).backward()
    assert torch.equal(leaf.grad, again.grad)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32,
                                   torch.uint32, torch.uint64])  # fmt: skip
def test_labels_of_every_integer_dtype(dtype):
    labels = LABELS.clamp(min=0)
    expected = losses.supcon_loss(Z1, Z2, labels)
    assert torch.equal(losses.supcon_loss(Z1, Z2, labels.to(dtype)), expected)
    expected = losses.mad_loss(Z1, Z2, labels)
    assert torch.equal(losses.mad_loss(Z1, Z2, labels.to(dtype)), expected)


def test_a_subclass_may_change_forward():
    class Weighted(losses.NTXentLoss):
        def forward(self, z1, z2, weight=1.0):
            return weight * super().forward(z1, z2)

    assert torch.equal(Weighted(0.2)(Z1, Z2, weight=3.0), 3.0 * losses.NTXentLoss(0.2)(Z1, Z2))
