"""The autoencoder: its size, what it learns from, what it takes over and how it scores."""

import numpy as np
import pytest
import torch

from selftaught import methods
from selftaught.errors import InputError
from selftaught.evaluation.metrics import auroc
from selftaught.methods.autoencoder import Autoencoder
from selftaught.methods.spheres import Spheres
from selftaught.models.encoder import EncoderConfig
from selftaught.models.network import Network
from tests import thin
from tests.methods.starts import Start

SIZE = 64


def task_of(size=SIZE, seed=0, **options):
    with thin.patch():
        return Autoencoder(methods.options("ae", **options), Network(image_size=size, seed=seed))


def test_the_published_number_of_parameters():
    encoder = EncoderConfig(batch_norm="plain")
    with torch.device("meta"):
        task = Autoencoder(
            methods.options("ae", decoder="published"), Network(encoder=encoder, image_size=512)
        )
        more = Autoencoder(methods.options("ae"), Network(encoder=encoder, image_size=512))
    count = sum(one.numel() for one in task.parameters())
    assert count == 21_248_384
    assert sum(one.numel() for one in more.parameters()) == count + 512 * 16 * 16


@pytest.mark.parametrize("decoder", ["corrected", "published"])
@pytest.mark.parametrize("size", [32, 64])
def test_every_parameter_gets_a_gradient(size, decoder):
    task = task_of(size, decoder=decoder)
    task(Start(task, size).batch(range(8)))["loss"].backward()
    assert all(one.grad is not None for one in task.parameters())
    assert task.decoder.output == ("tanh" if decoder == "published" else "sigmoid")


@pytest.mark.parametrize("name", ["ae", "joint-ae", "joint"])
def test_views_beyond_the_decoders_range_are_refused(name):
    """A tanh against grey levels up to 255 has a loss of thousands and learns nothing."""
    augment = methods.options("ntxent").augment.__class__(mask_scale=255)
    with pytest.raises(ValueError, match=r"augment.mask_scale is 255; allowed: 1, as"):
        methods.options(name, augment=augment)
    paper = methods.load(name).Options.presets["paper"]
    assert paper["augment"]["mask_scale"] == 1 and paper["decoder"] == "published"


@pytest.mark.parametrize("known_abnormal", ["reconstructed", "left_out"])
def test_known_abnormal_images_may_be_left_out(known_abnormal):
    task = task_of(known_abnormal=known_abnormal).eval()
    batch = Start(task, SIZE).batch(range(8))
    abnormal = batch["semi_label"] == -1
    x_hat = task.reconstruct(batch["views"][:, 0])[0]
    squared = batch["masks"][:, 0] * (x_hat - batch["views"][:, 0]) ** 2
    kept = ~abnormal if known_abnormal == "left_out" else abnormal | ~abnormal
    expected = squared[kept].sum() / batch["masks"][kept].sum()
    torch.testing.assert_close(task(batch)["loss"], expected)
    batch["semi_label"] = torch.full((8,), -1)
    if known_abnormal == "left_out":
        assert task(batch)["loss"] == 0, "a batch without a normal image"


def test_the_encoder_alone_goes_on_to_the_spheres():
    before = task_of(seed=1)
    with thin.patch():
        task = Spheres(methods.options("spheres", centers=1), Network(image_size=SIZE, seed=2))
    head = task.embedder.head.layers[0].weight.clone()
    start = Start(task, SIZE, before.state_dict())
    task.begin(start)
    for left, right in zip(
        task.embedder.encoder.state_dict().values(),
        before.embedder.encoder.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(left, right)
    assert torch.equal(task.embedder.head.layers[0].weight, head)


def test_an_autoencoder_takes_over_all_of_one_and_of_others_the_encoder():
    before, task = task_of(seed=1), task_of(seed=2)
    task.begin(Start(task, SIZE, before.state_dict()))
    assert all(torch.equal(v, before.state_dict()[k]) for k, v in task.state_dict().items())
    task, old = task_of(seed=2), task_of(seed=2)
    with thin.patch():
        other = Network(image_size=SIZE, seed=3).embedder().state_dict()
    task.begin(Start(task, SIZE, {f"embedder.{k}": v for k, v in other.items()}))
    for key, value in task.state_dict().items():
        source = other if key.startswith("embedder.encoder.") else old.state_dict()
        assert torch.equal(value, source[key if source is not other else key[9:]])
    with pytest.raises(InputError, match="ae starts from the state `embedder.encoder`"):
        task.begin(Start(task, SIZE, {"net.weight": torch.ones(2)}))


@pytest.mark.parametrize("over", ["mask", "frame"])
def test_a_score_is_the_error_inside_the_mask(over):
    task = task_of(score_over=over).eval()
    start = Start(task, SIZE)
    with torch.no_grad():
        result = task.scorer()(start.images, start.masks)
        x_hat = task.reconstruct(start.images)[0]
    squared = (start.masks * (x_hat - start.images) ** 2).sum((1, 2, 3))
    area = start.masks.sum((1, 2, 3)) if over == "mask" else SIZE**2
    torch.testing.assert_close(result["score"], squared / area)
    assert all(
        torch.equal(result[k], v) for k, v in zip("hz", task.features(start.images), strict=True)
    )


def test_what_was_never_reconstructed_scores_higher():
    task = task_of(32, known_abnormal="left_out")
    start = Start(task, 32, count=16)
    abnormal = start.labels == -1
    start.images[abnormal] = start.masks[abnormal] - start.images[abnormal] ** 4
    optimizer = torch.optim.Adam(task.parameters(), 3e-3)
    batch, losses = start.batch(range(16)), []
    for _ in range(40):
        optimizer.zero_grad()
        loss = task(batch)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    with torch.no_grad():
        scores = task.eval().scorer()(start.images, start.masks)["score"]
    assert auroc(abnormal.int().numpy(), np.asarray(scores)) > 0.9
