"""Encoder, heads and weights: sizes, equality with torchvision, seeds, formats, foreign weights."""

import pickle

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from selftaught.errors import InputError
from selftaught.models import (
    Embedder,
    Encoder,
    EncoderConfig,
    ProjectionHead,
    build_embedder,
    load_encoder_weights,
)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_published_network_has_its_published_size():
    embedder = Embedder(EncoderConfig(batch_norm="plain"), (256, 128))
    assert count(embedder) == 11_331_136
    names = dict(embedder.named_parameters())
    assert not any(".bn" in name or "downsample.1" in name for name in names)


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50"])
def test_equals_torchvision_on_the_image_repeated_three_times(architecture):
    encoder = Encoder(EncoderConfig(architecture=architecture)).eval()
    peer = getattr(torchvision.models, architecture)(weights=None)
    peer.load_state_dict(encoder.layers.state_dict(), strict=False)
    peer.fc = nn.Identity()
    x = torch.rand(2, 1, 65, 47)
    with torch.inference_mode():
        h = encoder(x)
        assert h.shape == (2, encoder.width)
        torch.testing.assert_close(h, peer.eval()(x.repeat(1, 3, 1, 1)), rtol=0, atol=0)
        torch.testing.assert_close(encoder.feature_map(x).mean((2, 3)), h)


def test_gradients_equal_torchvisions():
    encoder = Encoder(EncoderConfig())
    peer = torchvision.models.resnet18(weights=None)
    peer.load_state_dict(encoder.layers.state_dict(), strict=False)
    peer.fc = nn.Identity()
    x = torch.rand(3, 1, 40, 40)
    encoder(x).square().sum().backward()
    peer(x.repeat(1, 3, 1, 1)).square().sum().backward()
    wanted = dict(peer.named_parameters())
    for name, parameter in encoder.layers.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=1e-4, atol=1e-5)


def test_batch_norm_and_stem_variants():
    x = torch.rand(2, 1, 32, 32)
    plain = Encoder(EncoderConfig(batch_norm="plain"))
    norms = [module for module in plain.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 20 and all(norm.weight is None for norm in norms)
    assert all(norm.running_var is not None for norm in norms)
    small = Encoder(EncoderConfig(stem="small"))
    assert small.feature_map(x).shape == (2, 512, 4, 4)
    assert plain.feature_map(x).shape == (2, 512, 1, 1)
    assert small.layers.conv1.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)


def test_channels_last_gives_the_same():
    encoder = build_embedder(EncoderConfig(), 0).encoder.eval()
    x = torch.rand(3, 1, 33, 34)
    with torch.inference_mode():
        wanted = encoder(x)
        last = encoder.to(memory_format=torch.channels_last)
        found = last(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 8, 8), (2, 8, 8, 1)])
def test_only_one_channel_images_are_taken(shape):
    with pytest.raises(ValueError, match=r"x: shape .* must be \(B, 1, H, W\)"):
        Encoder(EncoderConfig())(torch.rand(shape))


@pytest.mark.parametrize("field", ["architecture", "stem", "batch_norm", "input_norm"])
def test_unknown_settings_are_refused(field):
    with pytest.raises(ValueError, match=f"{field}='vgg': must be one of"):
        EncoderConfig(**{field: "vgg"})


def test_the_head_is_the_published_one():
    head = ProjectionHead()
    h = torch.randn(5, 512)
    first, _, second = head.layers
    wanted = (h @ first.weight.T + first.bias).clamp(min=0) @ second.weight.T + second.bias
    torch.testing.assert_close(head(h), wanted)
    assert count(head) == 512 * 256 + 256 + 256 * 128 + 128
    assert len(ProjectionHead((8, 7, 6, 5)).layers) == 5


def test_wrong_heads_are_refused():
    with pytest.raises(ValueError, match=r"widths=\(512,\)"):
        ProjectionHead((512,))
    for head in ((), (256, 0)):
        with pytest.raises(ValueError, match="must be two or more numbers, all >= 1"):
            Embedder(EncoderConfig(), head)
    h, z = Embedder(EncoderConfig(architecture="resnet50")).eval()(torch.rand(1, 1, 32, 32))
    assert h.shape == (1, 2048) and z.shape == (1, 128)


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = build_embedder(EncoderConfig(), 3).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(8)
    second = build_embedder(EncoderConfig(), 3).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = build_embedder(EncoderConfig(), 4).state_dict()
    assert not torch.equal(
        first["encoder.layers.conv1.weight"], other["encoder.layers.conv1.weight"]
    )
    assert not torch.equal(first["head.layers.0.weight"], other["head.layers.0.weight"])


@pytest.fixture(scope="module")
def peer_state():
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None).state_dict()


@pytest.mark.parametrize("kind", ["pth", "safetensors", "without_counters"])
def test_weights_on_disk_are_taken_over(tmp_path, peer_state, kind):
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    state = dict(peer_state)
    if kind == "without_counters":
        state = {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}
    save_file(state, path) if kind == "safetensors" else torch.save(state, path)
    encoder = Encoder(EncoderConfig())
    load_encoder_weights(encoder, path)
    for name, tensor in encoder.layers.state_dict().items():
        assert torch.equal(tensor, peer_state[name]), name


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "resnet50"}, r"has shape \(.*\), the model needs \("),
        ({"stem": "small"}, r"conv1.weight has shape \(64, 3, 7, 7\), the model needs \(64, 3, 3"),
        ({"batch_norm": "plain"}, r"bn1.bias does not belong to this model"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(tmp_path, peer_state, config, message):
    torch.save(peer_state, tmp_path / "w.pth")
    encoder = Encoder(EncoderConfig(**config))
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    with pytest.raises(InputError, match=message) as caught:
        load_encoder_weights(encoder, tmp_path / "w.pth")
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], t) for name, t in encoder.state_dict().items())


class Payload:
    """Pickles to a call that leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_weights_that_are_hostile_or_damaged_are_refused(tmp_path, peer_state):
    trace = tmp_path / "trace"
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Payload(trace)))
    torch.save({"conv1.weight": Payload(trace)}, tmp_path / "torch.pth")
    (tmp_path / "pickle.safetensors").write_bytes(pickle.dumps(Payload(trace)))
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save(peer_state, tmp_path / "cut.pth")
    whole = (tmp_path / "cut.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    torch.save({**peer_state, "bn1.bias": torch.full((64,), torch.nan)}, tmp_path / "nan.pth")
    names = ["plain.pth", "torch.pth", "pickle.safetensors", "list.pth", "empty.pth", "cut.pth"]
    encoder = Encoder(EncoderConfig())
    for name in [*names, "nan.pth", "absent.pth", "absent.safetensors"]:
        with pytest.raises(InputError, match=name) as caught:
            load_encoder_weights(encoder, tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not trace.exists()


def test_both_sides_count_in_evaluation_and_one_in_training():
    torch.manual_seed(0)
    encoder, images = Encoder(EncoderConfig(mirror=True)), torch.rand(3, 1, 32, 32)
    plain = Encoder(EncoderConfig())
    plain.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        learnt = encoder(images)
        assert torch.equal(learnt, plain(images))
        encoder.eval(), plain.eval()
        both = (plain(images) + plain(images.flip(-1))) / 2
        torch.testing.assert_close(encoder(images), both)
        torch.testing.assert_close(encoder(images.flip(-1)), both)
        assert encoder(images[:0]).shape == (0, 512) and torch.equal(encoder(both), both)
    assert not torch.allclose(both, plain(images), rtol=1e-3)
