"""Joint training: its network, both losses, and the centre or subspace they aim at."""

import numpy as np
import pytest
import torch

from selftaught import methods
from selftaught.detector import Detector
from selftaught.evaluation.metrics import auroc
from selftaught.losses import mad_loss
from selftaught.methods.begin import sample
from selftaught.methods.joint import Joint
from selftaught.methods.joint_autoencoder import JointAutoencoder
from selftaught.methods.subspace import deep_sad, principal_subspace, regularised_span
from selftaught.models import Calibration, Preprocessing, save_model
from selftaught.models.encoder import EncoderConfig
from selftaught.models.map_embedder import new_branch
from selftaught.models.network import Network
from tests import thin
from tests.methods import runs
from tests.methods.starts import Start
from tests.ranks import run_ranks

SIZE = 64


def task_of(size=SIZE, seed=0, kind=Joint, **options):
    name = "joint" if kind is Joint else "joint-ae"
    with thin.patch():
        return kind(methods.options(name, **options), Network(image_size=size, seed=seed))


def begun(size=SIZE, weights=None, **options):
    task = task_of(size, **options)
    start = Start(task, size, weights)
    task.begin(start)
    return task, start


def test_the_published_network():
    network = Network(encoder=EncoderConfig(batch_norm="plain"), image_size=512)
    with torch.device("meta"):
        task = Joint(methods.options("joint"), network)
        features, h, z = task.embedder.parts(torch.zeros(2, 1, 512, 512))
        image = task.decoder(features)
    assert sum(one.numel() for one in task.parameters()) == 22_131_968
    assert features.shape == (2, 512, 16, 16) and h.shape == (2, 512) and z.shape == (2, 512)
    assert image.shape == (2, 1, 512, 512) and task.origin.shape == (512,)


@pytest.mark.parametrize(
    ("side", "places"),
    [(1, 1), (2, 4), (8, 4), (12, 4), (15, 4), (16, 4), (17, 4), (24, 4), (32, 4)],
)
def test_an_embedding_has_four_places_at_any_size(side, places):
    with torch.device("meta"):
        assert new_branch(512, side, "plain")(torch.zeros(2, 512, side, side)).shape == (
            2,
            128 * places,
        )


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("last_norm", ["plain", "none"])
def test_every_parameter_gets_a_gradient(size, last_norm):
    task, start = begun(size, last_norm=last_norm)
    task(start.batch(range(8)))["loss"].backward()
    assert all(one.grad is not None for one in task.parameters())


def test_each_loss_teaches_its_own_branch():
    task, start = begun()
    mse, distance = task.losses(start.batch(range(8)))

    def reached(loss, module):
        gradients = torch.autograd.grad(
            loss, list(module.parameters()), retain_graph=True, allow_unused=True
        )
        return {one is not None and bool(one.abs().sum() > 0) for one in gradients}

    assert reached(mse, task.decoder) == reached(distance, task.embedder.branch) == {True}
    assert reached(mse, task.embedder.branch) == reached(distance, task.decoder) == {False}
    assert reached(mse, task.embedder.encoder) == reached(distance, task.embedder.encoder) == {True}


def test_known_abnormal_images_are_not_reconstructed():
    task, start = begun()
    task.eval()
    batch = start.batch(range(8))
    images, abnormal = batch["views"][:, 0], batch["semi_label"] == -1
    x_hat = []
    task.decoder.register_forward_hook(lambda *call: x_hat.append(call[2]))
    mse = task.losses(batch)[0]
    (gradient,) = torch.autograd.grad(mse, x_hat[0])
    assert (gradient.flatten(1).abs().sum(1) > 0).tolist() == (~abnormal).tolist()
    squared = batch["masks"][:, 0] * (x_hat[0] - images) ** 2
    torch.testing.assert_close(mse, squared[~abnormal].sum() / batch["masks"].sum())


@pytest.mark.parametrize("distance", ["center", "subspace", "span"])
def test_both_losses_are_one_before_the_first_step_which_leaves_no_trace(distance):
    task, start = begun(distance=distance)
    for name, value in start.buffers.items():
        assert name == "scales" or torch.equal(task.get_buffer(name), value), name
    share = task.options.reconstruction
    with torch.no_grad():
        outputs = [task(batch) for batch in start.batches(start.rows)]
    for name, scale in (("reconstruction_loss", 0), ("distance_loss", 1)):
        mean = torch.stack([one[name] for one in outputs]).double().mean() * task.scales[scale]
        assert float(mean) == pytest.approx(1, abs=1e-6)
    assert float(sum(one["loss"] for one in outputs)) / len(outputs) == pytest.approx(1, abs=1e-6)
    for one in outputs:
        expected = (
            share * task.scales[0] * one["reconstruction_loss"]
            + (1 - share) * task.scales[1] * one["distance_loss"]
        )
        torch.testing.assert_close(one["loss"], expected)
    assert "divided by these" in start.notes[-1]


def test_the_encoder_keeps_its_statistics_and_the_branch_gets_some():
    before = task_of(seed=1, kind=JointAutoencoder)
    before.embedder(torch.rand(8, 1, SIZE, SIZE))  # statistics of a training
    task, start = begun(weights=before.state_dict(), seed=2)
    for name, value in before.state_dict().items():
        assert torch.equal(task.state_dict()[name], value), name
    assert task.training
    with torch.no_grad():
        z = task.eval().features(start.images)[1].unflatten(1, (-1, 4))
    torch.testing.assert_close(z.mean((0, 2)), torch.zeros(16), rtol=0, atol=0.1)
    torch.testing.assert_close(z.var((0, 2)), torch.ones(16), rtol=0, atol=0.2)


def test_the_centre_is_the_mean_of_images_not_known_to_be_abnormal():
    task, start = begun(center_epsilon=0.1)
    normal = start.labels != -1
    assert start.rows_of_features == [torch.nonzero(normal).flatten().tolist()]
    with torch.no_grad():
        z = task.eval().features(start.images[normal])[1].double()
    mean = z.mean(0)
    small = mean.abs() < 0.1
    assert small.any()
    torch.testing.assert_close(
        task.origin.double(), torch.where(small, mean.sign() * 0.1, mean), rtol=1e-6, atol=1e-7
    )
    assert torch.equal(task.off, torch.eye(64))
    with torch.no_grad():
        squared = (z - task.origin).square().sum(1)
        score = task.scorer()(start.images, start.masks)
    torch.testing.assert_close(score["score"][normal].double(), squared, rtol=1e-5, atol=0)
    assert score["reconstruction"].shape == (32,)
    task.renew(start)
    assert len(start.rows_of_features) == 1, "a centre never moves"


def test_deep_sad_is_the_loss_of_points_with_one_centre():
    generator = torch.Generator().manual_seed(0)
    x, center = torch.randn(2, 9, 16, generator=generator, dtype=torch.float64)
    known = torch.tensor([-1, 0, 1] * 3)
    x.requires_grad_()
    for epsilon in (1e-6, 0.3):
        squared = (x - center[0]).square().sum(1)
        result = deep_sad(squared, known, 2.0, torch.tensor(epsilon, dtype=torch.float64)).mean()
        expected = mad_loss(x, center[:1], known, eta=2.0, eps=epsilon)
        torch.testing.assert_close(result, expected)
        gradients = [torch.autograd.grad(one, x)[0] for one in (result, expected)]
        torch.testing.assert_close(*gradients)


def test_normal_images_alone_teach_nothing_through_a_norm_at_one_place():
    """The mean squared length of what leaves a plain batch norm is a constant."""
    torch.manual_seed(0)
    for last_norm, taught in (("plain", False), ("none", True)):
        branch = new_branch(32, 1, last_norm).double()
        branch[-2].eps = 1e-12
        center = torch.randn(8, dtype=torch.float64)
        z = branch(torch.randn(16, 32, 1, 1, dtype=torch.float64))
        loss = (z - center).square().sum(1).mean()
        gradients = torch.autograd.grad(loss, list(branch.parameters()))
        assert (max(float(one.abs().max()) for one in gradients) > 1e-8) == taught
        assert (loss.item() == pytest.approx(8 + float(center.square().sum()))) != taught


def toy(seed, bank=1500, normals=500, anomalies=100):
    """64-d: SD 3 in 8 directions and 0.3 in the others, mean 4; anomalies 1.5 off the subspace."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(64, 64)))[0]
    scale = np.r_[np.full(8, 3.0), np.full(56, 0.3)]
    offset = 4 * basis @ np.ones(64) / 8
    z = (rng.normal(size=(bank + normals + anomalies, 64)) * scale) @ basis.T + offset
    push = rng.normal(size=(anomalies, 56)) @ basis[:, 8:].T
    z[-anomalies:] += 1.5 * push / np.linalg.norm(push, axis=1, keepdims=True)
    labels = np.r_[np.zeros(normals, int), np.ones(anomalies, int)]
    return torch.from_numpy(z[:bank]), torch.from_numpy(z[bank:]), labels


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_distance_to_a_subspace_tells_what_is_off_it(seed):
    bank, others, labels = toy(seed)
    task = task_of(distance="subspace")
    # The eight wide directions hold 93 % of the variance.
    task.origin, task.off, _ = principal_subspace(bank, share=0.9)
    assert float(task.off.trace()) == pytest.approx(64 - 8)
    assert auroc(labels, task.squared_distance(others).numpy()) >= 0.9


def test_the_published_arithmetic_tells_nothing():
    values = []
    for seed in range(4):  # rounding decides each, so that one alone would say little
        bank, others, labels = toy(seed)
        bank, others = bank[:600].float(), others.float()
        inverse = torch.linalg.inv(bank @ bank.T + 1e-3 * torch.eye(len(bank)))
        squared = (others - others @ bank.T @ inverse @ bank).square().sum(1)
        values.append(auroc(labels, squared.numpy()))
    assert np.mean(values) <= 0.55


def test_a_projection_off_the_principal_directions():
    bank = toy(0)[0]
    origin, off, epsilon = principal_subspace(bank)
    torch.testing.assert_close(origin, bank.mean(0))
    variances = torch.linalg.eigvalsh(torch.cov(bank.T)).flip(0)
    fewest = next(q for q in range(1, 65) if variances[:q].sum() >= 0.95 * variances.sum())
    torch.testing.assert_close(off @ off, off)
    torch.testing.assert_close(off, off.T)
    assert float(off.trace()) == pytest.approx(64 - fewest)
    leading = torch.linalg.eigh(torch.cov(bank.T)).eigenvectors[:, -fewest:]
    torch.testing.assert_close(off @ leading, torch.zeros_like(leading))
    residual = ((bank - origin) @ off).square().sum(1).mean()
    assert epsilon == pytest.approx(1e-6 * float(residual))
    assert float(principal_subspace(torch.randn(500, 64).double())[1].trace()) == pytest.approx(32)


def test_embeddings_in_the_subspace_are_at_no_distance():
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(64, 4, generator=generator, dtype=torch.float64)).Q
    bank = 5 + torch.randn(100, 4, generator=generator, dtype=torch.float64) @ directions.T
    origin, off, epsilon = principal_subspace(bank)
    assert float(off.trace()) == pytest.approx(64 - 4)
    assert ((bank - origin) @ off).square().sum(1).max() < 1e-20
    assert 0 < epsilon < 1e-20


def test_the_span_as_published_in_exact_arithmetic():
    bank = torch.randn(20, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    origin, off, epsilon = regularised_span(bank)
    # N x N as published, which has an inverse where there are fewer embeddings than dimensions.
    inverse = torch.linalg.inv(bank @ bank.T + 1e-3 * torch.eye(20, dtype=torch.float64))
    torch.testing.assert_close(torch.eye(64) - off, bank.T @ inverse @ bank, check_dtype=False)
    assert not origin.any() and epsilon == 1e-6


def test_a_sample_depends_on_the_seed_alone():
    rows = np.arange(100, 150)
    assert sample(rows, 99, 3).tolist() == rows.tolist()
    first = sample(rows, 10, 3).tolist()
    assert len(set(first)) == 10 and set(first) <= set(rows.tolist())
    assert first == sample(rows, 10, 3).tolist() == sorted(first) != sample(rows, 10, 4).tolist()


@pytest.mark.parametrize(("distance", "follows"), [("subspace", True), ("span", False)])
def test_the_subspace_follows_the_embeddings_and_the_scales_do_not(distance, follows):
    task, start = begun(distance=distance)
    before = {name: value.clone() for name, value in task.named_buffers()}
    with torch.no_grad():
        for one in task.embedder.branch.parameters():
            one.add_(0.05 * torch.randn(one.shape, generator=torch.Generator().manual_seed(0)))
    task.renew(start)
    changed = {name for name, value in task.named_buffers() if not torch.equal(value, before[name])}
    assert changed == ({"origin", "off", "epsilon"} if follows else set())
    if follows:
        assert start.rows_of_features[0] == start.rows_of_features[1]
        z = start.features(start.rows[start.labels.numpy() != -1]).double()
        torch.testing.assert_close(task.origin, z.mean(0).float())


@pytest.mark.parametrize("distance", ["center", "subspace", "span"])
def test_a_saved_model_scores_alike(distance, tmp_path):
    task, start = begun(distance=distance)
    path = save_model(tmp_path / "model", task, Preprocessing(image_size=SIZE), Calibration())
    with torch.no_grad():
        expected = task.eval().scorer()(start.images, start.masks)
    with thin.patch():
        result = Detector.load(path).score(start.images, masks=start.masks)
    torch.testing.assert_close(result, expected["score"])


def subspace_weights(root, folder):
    with thin.patch():
        checkpoint = runs.train(
            root, folder, "joint", precision="fp64", optimizer="sgd", distance="subspace"
        )
    return {key: value.numpy() for key, value in checkpoint.weights.items()}


def test_two_ranks_have_the_subspace_of_one(tmp_path):
    root = runs.write(tmp_path / "images")
    one = subspace_weights(root, tmp_path / "one")
    assert one["off"].trace() < 16
    for two in run_ranks(2, subspace_weights, root, tmp_path / "two"):
        for key, value in one.items():
            np.testing.assert_allclose(two[key], value, rtol=1e-7, atol=1e-9, err_msg=key)
