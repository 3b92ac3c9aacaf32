"""DROCC: the nearest vectors of a shell, the search for the worst perturbation, and its loss."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from selftaught import methods
from selftaught.errors import InputError
from selftaught.evaluation.metrics import auroc
from selftaught.methods import drocc, noise, perturbation
from selftaught.methods.drocc import Drocc, cross_entropy
from selftaught.methods.perturbation import (
    masked_deviation,
    project_shell,
    project_weighted_shell,
    search,
)
from selftaught.models.network import Network
from tests import thin

SIZE = 32


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def weighted_norm(h, weight):
    return (weight * h.square()).flatten(1).sum(1).sqrt()


# ---- nearest vectors of a shell


@pytest.mark.parametrize(
    ("z", "nearest"),
    [
        ([6.0, 8.0], [2.4, 3.2]),
        ([0.3, 0.4], [1.2, 1.6]),
        ([1.8, 2.4], [1.8, 2.4]),
        ([0.0, 0.0], [0.0, 0.0]),
    ],
)
def test_the_nearest_vector_of_a_shell(z, nearest):
    h = project_shell(rows(z), rows(2.0), rows(4.0))
    torch.testing.assert_close(h, rows(nearest), rtol=1e-15, atol=0)


@pytest.mark.parametrize(
    ("radius", "nearest"), [(2.0, [1.4502, 1.0357]), (0.5, [0.6749, 0.9492]), (1.0, [1.0, 1.0])]
)
def test_the_nearest_vector_of_a_weighted_shell_in_two_dimensions(radius, nearest):
    inner = rows(radius)
    h = project_weighted_shell(rows([1.0, 1.0]), rows([1.8, 0.2]), inner, 2 * inner)
    torch.testing.assert_close(h, rows(nearest), rtol=0, atol=5e-5)


def test_weights_of_one_give_the_plain_shell():
    z = draw(40, 3, 5) * torch.linspace(0.05, 3, 40, dtype=torch.float64)[:, None, None]
    inner = torch.full((40,), 3.0, dtype=torch.float64)
    plain = project_shell(z, inner, 2 * inner)
    norms = z.flatten(1).norm(dim=1)
    assert (norms < 3).any() and (norms > 6).any() and ((norms > 3) & (norms < 6)).any()
    weighted = project_weighted_shell(z, torch.ones_like(z), inner, 2 * inner)
    torch.testing.assert_close(weighted, plain, rtol=4e-15, atol=1e-15)


@pytest.mark.parametrize("z", [[0.3, -0.2, 0.5, 0.1], [2.0, -3.0, 1.0, 4.0], [0.4, 0.0, -0.3, 0.0]])
@pytest.mark.parametrize("weight", [[1.9, 0.1, 0.8, 1.2], [0.2, 1.6, 0.6, 1.6]])
def test_no_feasible_point_is_nearer(z, weight):
    """Among 200,000 points of the shell; zeros along the largest weight are the hard case."""
    z, weight = rows(z), rows(weight)
    inner, outer = 1.0, 2.0
    h = project_weighted_shell(z[None], weight[None], rows(inner), rows(outer))
    length = float(weighted_norm(h, weight))
    assert inner * (1 - 1e-12) <= length <= outer * (1 + 1e-12)
    others = z + draw(200_000, 4) * torch.logspace(-3, 1, 200_000, dtype=torch.float64)[:, None]
    norms = weighted_norm(others, weight)
    others *= (norms.clamp(inner, outer) / norms)[:, None]
    assert (others - z).norm(dim=1).min() >= (h - z).norm() * (1 - 1e-12)


def test_a_vector_with_nothing_along_the_largest_weight_still_reaches_the_shell():
    weight = rows([1.8, 0.2])
    h = project_weighted_shell(rows([0.0, 1.0]), weight[None], rows(2.0), rows(4.0))
    # 1 + t weight = 1 - 0.2 / 1.8 for the second coordinate, the rest lies along the first.
    second = 1 / (1 - 0.2 / 1.8)
    first = math.sqrt((4 - 0.2 * second**2) / 1.8)
    torch.testing.assert_close(h, rows([first, second]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_many_coordinates_in_float32_end_on_the_shell(size):
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(6, 1, 64, 64, generator=generator) * size
    weight = torch.randn(6, 1, 64, 64, generator=generator).abs() ** 3
    z[:, :, :9], weight[:, :, :9], z[5] = 0, 0, 0
    weight /= weight.mean((1, 2, 3), keepdim=True)
    inner = torch.full((6,), 30.0)
    h = project_weighted_shell(z, weight, inner, 2 * inner)
    norms = weighted_norm(h, weight)[:5]
    assert (norms >= 30 * (1 - 1e-5)).all() and (norms <= 60 * (1 + 1e-5)).all()
    assert not h[:, :, :9].any() and not h[5].any(), "zeros stay where nothing weighs"
    exact = project_weighted_shell(z.double(), weight.double(), inner.double(), 2 * inner.double())
    torch.testing.assert_close(h.double(), exact, rtol=2e-4, atol=2e-4 * 60 / 64)


# ---- the search


def square_mask(count=1):
    mask = torch.zeros(count, 1, SIZE, SIZE)
    mask[:, :, 8:24, 8:24] = 1
    return mask


def of_each(count, value):
    return torch.full((count,), value, dtype=torch.float64)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_search_lowers_a_linear_logit_by_rate_times_slope_a_step(weighted):
    mask, w = square_mask(3).double(), draw(1, SIZE, SIZE)
    images, start = draw(3, 1, SIZE, SIZE, seed=1) * mask, draw(3, 1, SIZE, SIZE, seed=2)

    def linear(x):
        return (x * w).sum((1, 2, 3))

    result = search(
        linear, images, mask, start, radius=of_each(3, 1e-3), gamma=1e9, rate=of_each(3, 0.7),
        steps=5, weighted=weighted,
    )  # fmt: skip
    torch.testing.assert_close(result.before, linear(images + start * mask))
    slope = (w * mask[0]).norm()
    torch.testing.assert_close(result.after, result.before - 5 * 0.7 * slope, rtol=1e-12, atol=0)
    assert not ((result.images - images) * (1 - mask)).any()


class Network64(nn.Sequential):
    """Logits of images by two layers."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(SIZE**2, 16), nn.Tanh(), nn.Linear(16, 1))
        generator = torch.Generator().manual_seed(5)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.2, generator=generator)
        self.double()

    def forward(self, images):
        return super().forward(images)[:, 0]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_every_step_ends_on_the_shell(weighted, steps):
    network, mask = Network64(), square_mask(4).double()
    images, start = draw(4, 1, SIZE, SIZE, seed=1) * mask, draw(4, 1, SIZE, SIZE, seed=2)
    radius = torch.tensor([0.5, 2.0, 8.0, 30.0], dtype=torch.float64)
    result = search(
        network, images, mask, start, radius=radius, gamma=1.5, rate=radius / 5, steps=steps,
        weighted=weighted,
    )  # fmt: skip
    h = result.images - images
    weight = torch.ones_like(h)
    if weighted:
        x = images.clone().requires_grad_()
        weight = torch.autograd.grad(network(x).sum(), x)[0].abs() * mask
        weight /= weight.sum((1, 2, 3), keepdim=True) / 256
    norms = weighted_norm(h, weight)
    assert (norms >= radius * (1 - 1e-12)).all() and (norms <= 1.5 * radius * (1 + 1e-12)).all()
    assert not (h * (1 - mask)).any()
    assert (result.after < result.before).all() or steps == 0
    assert not result.images.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())


def test_perturbed_images_stay_within_the_limits():
    mask = square_mask(2).double()
    images = mask * 0.5
    result = search(
        Network64(), images, mask, draw(2, 1, SIZE, SIZE), radius=of_each(2, 20.0), gamma=2.0,
        rate=of_each(2, 4.0), steps=3, limits=(0.0, 1.0),
    )  # fmt: skip
    assert float(result.images.min()) == 0 and float(result.images.max()) == 1


@pytest.mark.parametrize("weighted", [False, True])
def test_flat_and_certain_logits_and_empty_masks_give_numbers(weighted):
    mask = square_mask(2).double()
    mask[1] = 0
    for slope in (0.0, 1e6):
        result = search(
            lambda x, slope=slope: 1e3 + slope * x.sum((1, 2, 3)), mask, mask,
            draw(2, 1, SIZE, SIZE), radius=of_each(2, 4.0), gamma=2.0, rate=of_each(2, 1.0),
            steps=2, weighted=weighted,
        )  # fmt: skip
        assert result.images.isfinite().all() and not result.images[1].any()
        assert 4 * (1 - 1e-12) <= float((result.images - mask)[0].norm()) <= 8 * (1 + 1e-12)
    assert float(result.after[0]) < float(result.before[0]), "a certain logit moves too"


# ---- the task


def task_of(**options):
    options = {"warmup_epochs": 0, "search_steps": 2, "radius": 3.0, **options}
    with thin.patch():
        task = Drocc(methods.options("drocc", **options), Network(image_size=SIZE, seed=4))
    return task.double()


def batch_of(labels, epoch=0):
    count = len(labels)
    masks = square_mask(count).double()
    views = draw(count, 1, SIZE, SIZE, seed=8).abs().clamp(0, 1) * masks
    return {
        "views": views[:, None],
        "masks": masks[:, None],
        "semi_label": torch.tensor(labels),
        "ids": torch.arange(count),
        "epoch": epoch,
        "step": 0,
    }


@pytest.mark.parametrize("form", ["one_class", "oe", "lf"])
@pytest.mark.parametrize("labels", [[0, -1, 1, -1], [0, 0, 1, 0], [-1, -1, -1, -1]])
def test_the_loss_by_hand(form, labels):
    task, batch = task_of(form=form, mu=0.3), batch_of(labels)
    again = task_of(form=form, mu=0.3)
    images, masks = batch["views"][:, 0], batch["masks"][:, 0]
    again.embedder.eval()
    worst = search(
        lambda x: again.embedder(x)[1][:, 0], images, masks,
        noise.normal(4, 0, range(4), (1, SIZE, SIZE)).double(), radius=of_each(4, 3.0), gamma=2.0,
        rate=of_each(4, 0.6), steps=2, limits=(0.0, 1.0), weighted=form == "lf",
    )  # fmt: skip
    again.embedder.train()
    logits = again.embedder(torch.cat([images, worst.images]))[1][:, 0]
    expected = torch.zeros((), dtype=torch.float64)
    for row, label in enumerate(labels):
        if label == -1:
            expected += (form != "one_class") * torch.log1p(torch.exp(-logits[row]))
        else:
            expected += torch.log1p(torch.exp(logits[row]))
            expected += 0.3 * torch.log1p(torch.exp(-logits[4 + row]))
    outputs = task(batch)
    torch.testing.assert_close(outputs["loss"], expected / 4, rtol=1e-12, atol=1e-300)
    assert outputs["bce_after_search"] > outputs["bce_before_search"]
    norms = (worst.images - images).flatten(1).norm(dim=1)
    torch.testing.assert_close(outputs["perturbation_mean"], norms.mean())
    torch.testing.assert_close(outputs["perturbation_min"], norms.min())
    # The search leaves no trace in the batch statistics, nor in the mode.
    assert task.training and all(module.training for module in task.modules())
    for (name, ours), theirs in zip(task.named_buffers(), again.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_bfloat16_passes_leave_losses_and_perturbations_in_float32():
    task, batch = task_of().float(), batch_of([0, -1, 1, 0])
    batch |= {name: batch[name].float() for name in ("views", "masks")}
    exact = task(batch)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = task(batch)
    assert {value.dtype for value in outputs.values()} == {torch.float32}
    outputs["loss"].backward()
    assert all(parameter.grad.isfinite().all() for parameter in task.parameters())
    for name, value in outputs.items():
        torch.testing.assert_close(value, exact[name], rtol=0.1, atol=0.02, msg=name)


def test_known_abnormal_images_neither_teach_one_class_nor_are_perturbed():
    logits = draw(4).requires_grad_()
    known = torch.tensor([True, False, False, True])
    cross_entropy(logits, known, ~known).backward()
    assert logits.grad[known].eq(0).all()
    expected = torch.sigmoid(logits.detach()[~known]) / 4
    torch.testing.assert_close(logits.grad[~known], expected)


def test_nothing_is_perturbed_before_the_warm_up_has_ended(monkeypatch):
    task = task_of(warmup_epochs=2)
    batch = batch_of([0, -1, 1, -1], epoch=1)
    with monkeypatch.context() as patched:
        patched.setattr(drocc, "search", None)
        outputs = task(batch)
    logits = task_of().embedder(batch["views"][:, 0])[1][:, 0]
    target = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(outputs["loss"], binary_cross_entropy_with_logits(logits, target))
    assert outputs.keys() == {"loss", "bce"}
    assert "bce_perturbed" in task(batch | {"epoch": 2})


def test_a_run_that_ends_in_its_warm_up_is_warned_of():
    lines = task_of(warmup_epochs=5, epochs=4).check_epoch(0)
    assert len(lines) == 1 and "warmup_epochs is 5 of 4 epochs" in lines[0]
    assert not task_of(warmup_epochs=5, epochs=4).check_epoch(1)
    assert not task_of(warmup_epochs=5, epochs=6).check_epoch(0)


def test_the_radius_follows_deviation_and_area():
    task, batch = task_of(radius=0.0, gamma=1.0, search_steps=1, form="oe"), batch_of([0] * 4)
    # Grey in the middle of the range, so that nothing is cut.
    batch["views"] = batch["masks"] * 0.5
    batch["masks"][1, 0, 0, :12] = 0
    task.deviation.fill_(0.01)
    outputs = task(batch)
    radii = [0.5 * 0.01 * math.sqrt(area) for area in (256, 192, 256, 256)]
    assert float(outputs["perturbation_mean"]) == pytest.approx(np.mean(radii), rel=1e-9)
    assert float(outputs["perturbation_min"]) == pytest.approx(radii[1], rel=1e-9)


def test_deviation_is_that_of_pixels_inside_masks():
    images, masks = draw(6, 1, 1, 8, 8), (draw(6, 1, 1, 8, 8, seed=3) > 0).double()
    parts = zip((images * masks).split(4), masks.split(4), strict=True)
    inside = images[masks > 0].numpy()
    assert masked_deviation(parts) == pytest.approx(inside.std(), rel=1e-12)
    assert math.isnan(masked_deviation(iter(())))


class Start:
    """What a task is offered at its start."""

    seed, rows = 3, np.arange(12)
    labels = torch.zeros(12, dtype=torch.int64)

    def __init__(self, views, before=None):
        self.all, self.before, self.notes = views, before or {}, []

    def weights(self):
        return self.before

    def batches(self, rows, *, random=False):
        assert sorted(rows.tolist()) == list(range(12)) and not random
        for row in np.split(rows, 3):
            views = self.all[row]
            yield {"views": views, "masks": (views > 0).double()}

    def note(self, text):
        self.notes.append(text)


def test_a_start_takes_the_encoder_of_the_stage_before_and_measures_pixels():
    views = draw(12, 1, 1, SIZE, SIZE).clamp_min(0)
    before, task = task_of(), task_of()
    with torch.no_grad():
        for parameter in before.parameters():
            parameter.add_(1.0)
    head = task.embedder.head.layers[0].weight.clone()
    task.begin(Start(views, before.state_dict()))
    for ours, theirs in zip(
        task.embedder.encoder.parameters(), before.embedder.encoder.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert torch.equal(task.embedder.head.layers[0].weight, head)
    expected = views[views > 0].numpy().std()
    assert float(task.deviation) == pytest.approx(expected, rel=1e-12)


def test_images_without_contrast_need_a_radius():
    blank = torch.ones(12, 1, 1, SIZE, SIZE, dtype=torch.float64)
    with pytest.raises(InputError, match="standard deviation 0 .*allowed: .*radius above 0"):
        task_of(radius=0.0).begin(Start(blank))
    task_of(radius=1.0).begin(Start(blank))


class Layers(nn.Module):
    """An encoder without batch statistics, which some tens of steps would not settle."""

    def __init__(self):
        super().__init__()
        layers = Network64()
        self.encoder = nn.Sequential(*list(layers)[:-1])
        self.head = nn.Linear(16, 1, bias=False).double()
        nn.init.constant_(self.head.weight, 0.01)


@pytest.mark.parametrize("form", ["oe", "lf"])
def test_the_score_is_higher_for_what_it_has_learned_as_abnormal(form):
    task, batch = task_of(form=form, radius=0.0), batch_of([-1, 0, 0, 1] * 8)
    task.embedder = Layers()
    batch["views"][::4] = batch["views"][::4].square()
    task.deviation.fill_(0.3)
    optimizer = torch.optim.Adam(task.parameters(), lr=5e-3)
    for epoch in range(25):
        optimizer.zero_grad()
        task(batch | {"epoch": epoch})["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        outputs = task.eval().scorer()(batch["views"][:, 0], batch["masks"][:, 0])
    assert auroc((batch["semi_label"] == -1).numpy(), outputs["score"].numpy()) > 0.9
    assert outputs["h"].shape == (32, 16)


def test_the_head_has_no_bias_and_is_drawn_from_the_seed():
    task, again = task_of(), task_of()
    assert [name for name, _ in task.embedder.head.named_parameters()] == ["layers.0.weight"]
    assert torch.equal(*(one.embedder.head.layers[0].weight for one in (task, again)))
    assert dataclasses.asdict(task.network)["head"] == (256, 128), "the run's network stays"


# ---- the toy: normal images of rank 8, abnormal ones with a random vector of length 4 besides


def toy_auroc(seed, *, masked=True, steps=3):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator)

    basis = 4 * torch.linalg.qr(randn(256, 8))[0].T

    def images(count):
        pixels = randn(count, 8) @ basis + 0.05 * randn(count, 256)
        whole = square_mask(count)
        whole[whole == 1] = pixels.flatten()
        return whole

    train, normal, abnormal = images(1000), images(400), images(400)
    vectors = randn(400, 256)
    vectors *= 4 / vectors.norm(dim=1, keepdim=True)
    abnormal[square_mask(400) == 1] += vectors.flatten()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(SIZE**2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()]
        network = nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, 1, bias=False), nn.Flatten(0))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    radius = torch.full((64,), 4.0)
    mask = square_mask(64) if masked else torch.ones(64, 1, SIZE, SIZE)
    for _ in range(200):
        batch = train[torch.randint(0, 1000, (64,), generator=generator)]
        worst = search(
            network, batch, mask, randn(64, 1, SIZE, SIZE), radius=radius, gamma=2.0,
            rate=radius / 5, steps=steps,
        )  # fmt: skip
        clean, perturbed = network(torch.cat([batch, worst.images])).chunk(2)
        normals = torch.zeros(64, dtype=torch.bool)
        loss = cross_entropy(clean, normals, ~normals)
        loss = loss + 0.5 * cross_entropy(perturbed, ~normals, ~normals)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        scores = network(torch.cat([normal, abnormal]))
    return auroc(np.arange(800) >= 400, scores.numpy())


def published_projection(z, inner, outer):
    """Without a root, five times, on a radius of half the side: ends at norm 2 whatever that is."""
    radius = SIZE / 2
    for _ in range(5):
        squared = z.flatten(1).square().sum(1)
        z = z * (squared.clamp(0.5 * radius, radius) / squared)[:, None, None, None]
    return z


def test_the_toy_is_learned():
    assert toy_auroc(0) >= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_the_toy_is_learned_by_masked_search_alone(seed, monkeypatch):
    assert toy_auroc(seed) >= 0.98
    assert toy_auroc(seed, masked=False, steps=0) <= 0.95
    monkeypatch.setattr(perturbation, "project_shell", published_projection)
    z = perturbation.project_shell(draw(3, 1, SIZE, SIZE), None, None)
    torch.testing.assert_close(z.flatten(1).norm(dim=1), of_each(3, 2.0), rtol=0.02, atol=0)
    assert toy_auroc(seed, masked=False, steps=1) <= 0.60  # its one step that counts
