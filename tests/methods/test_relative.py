"""Relative distance: the formulas of its prototypes, strata, contamination and probability."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from selftaught import methods
from selftaught.losses.means import mean_above_zero
from selftaught.methods.relative import Prototypes
from selftaught.models.network import Network
from tests import thin
from tests.methods import starts
from tests.ranks import run_ranks

WIDTH = 6


@pytest.fixture(autouse=True)
def thin_encoder():
    torch.set_num_threads(1)
    with thin.patch():
        yield


class Layer(torch.nn.Module):
    """A linear layer in the place of an embedder."""

    def __init__(self, inputs, width=WIDTH):
        super().__init__()
        self.encoder = torch.nn.Identity()
        self.head = torch.nn.Linear(inputs, width, dtype=torch.float64)

    def forward(self, x):
        return x, self.head(x)


def task_of(inputs, names=(), **options):
    """A task in float64 that embeds vectors (B, `inputs`) by a linear layer."""
    options = methods.options("relative", **options)
    network = Network(head=(WIDTH,), image_size=32, strata=names)
    task = methods.load("relative")(options, network).double()
    task.embedder = Layer(inputs)
    return task


def batch_of(x, labels, **more):
    return {"views": x[:, None], "semi_label": torch.as_tensor(labels), "step": 0, **more}


def prototypes(options, width):
    """Normal ones (K, D) and the abnormal one (D,)."""
    points = options.radius * torch.eye(width, dtype=torch.float64)
    return points[: options.centers], points[options.centers]


def distance_as_published(z, options):
    """s(z) from squared distances to the prototypes."""
    normal, abnormal = prototypes(options, z.shape[1])
    tau, floor = options.temperature, options.floor * options.radius**2 or math.inf
    near = (z[:, None] - normal).square().sum(2)
    far = (z - abnormal).square().sum(1, keepdim=True)
    e_n = -tau * ((-near / tau).logsumexp(1) - math.log(len(normal)))
    e_a = -tau * torch.cat([-far / tau, torch.full_like(far, -floor / tau)], 1).logsumexp(1)
    return (e_n - e_a) / tau


def embeddings(options):
    """Small, ordinary and long ones, ties, and the prototypes themselves."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(60, WIDTH, generator=generator)
    directions *= torch.logspace(-3, 3, 60)[:, None] / directions.norm(dim=1, keepdim=True)
    normal, abnormal = prototypes(options, WIDTH)
    ties = torch.ones(2, WIDTH) * torch.tensor([[1.5], [-1000.0]])
    middle = (normal[0] + abnormal)[None] / 2
    return torch.cat([directions, ties, normal.float(), abnormal[None].float(), middle.float()])


SHAPES = [
    {},
    {"floor": 0.0},
    {"centers": 3},
    {"centers": 5, "radius": 1.0, "temperature": 2.0, "floor": 1.0},
    {"centers": 2, "radius": 4.0, "temperature": 0.5, "floor": 0.0},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_score_and_gradient_are_the_published_formula(shape):
    options = methods.options("relative", **shape)
    z = embeddings(options).requires_grad_()
    exact = z.detach().double().requires_grad_()
    score = Prototypes(z, options.centers, options).score()
    wanted = distance_as_published(exact, options)
    torch.testing.assert_close(score.double(), wanted, rtol=1e-6, atol=2e-6)
    for abnormal in (0.0, 1.0):
        losses = functional.binary_cross_entropy_with_logits(
            score, torch.full_like(score, abnormal), reduction="none"
        )
        (slope,) = torch.autograd.grad(losses.sum(), score, retain_graph=True)
        assert slope.abs().max() <= 1
        (found,) = torch.autograd.grad(losses.sum(), z, retain_graph=True)
        losses = functional.softplus(-wanted if abnormal else wanted)
        (known,) = torch.autograd.grad(losses.sum(), exact, retain_graph=True)
        torch.testing.assert_close(found.double(), known, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_pulls_from_soft_prototypes_to_the_abnormal_one(shape):
    options = methods.options("relative", **shape)
    z = embeddings(options).double().requires_grad_()
    (slope,) = torch.autograd.grad(Prototypes(z, options.centers, options).score().sum(), z)
    with torch.no_grad():
        normal, abnormal = prototypes(options, WIDTH)
        tau = options.temperature
        weights = (-(z[:, None] - normal).square().sum(2) / tau).softmax(1)
        v = torch.ones(len(z), 1, dtype=torch.float64)
        if options.floor:
            far = (z - abnormal).square().sum(1, keepdim=True)
            v = ((options.floor * options.radius**2 - far) / tau).sigmoid()
        wanted = 2 / tau * (v * abnormal + (1 - v) * z - weights @ normal)
    torch.testing.assert_close(slope, wanted, rtol=1e-9, atol=1e-9)


def test_bf16_embeddings_are_scored_in_float32():
    options = methods.options("relative", centers=3)
    z = embeddings(options).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        score = Prototypes(z, 3, options).score()
    assert score.dtype == torch.float32
    wanted = distance_as_published(z.double(), options)
    torch.testing.assert_close(score.double(), wanted, rtol=1e-6, atol=2e-6)


def ordinary(inputs=5, images=16, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, inputs, generator=generator, dtype=torch.float64)
    return x, torch.tensor([-1, 0, 0, 1] * (images // 4))


def test_one_centre_without_a_floor_is_logistic_regression():
    x, labels = ordinary()
    task = task_of(5, floor=0.0, radius=1.5, temperature=0.7)
    task(batch_of(x, labels))["loss"].backward()
    weight = task.embedder.head.weight.detach().clone().requires_grad_()
    bias = task.embedder.head.bias.detach()
    z = x @ weight.T + bias
    logit = 2 * 1.5 / 0.7 * (z[:, 1] - z[:, 0])
    loss = functional.binary_cross_entropy_with_logits(logit, (labels == -1).double())
    loss.backward()
    torch.testing.assert_close(task(batch_of(x, labels))["loss"], loss)
    torch.testing.assert_close(task.embedder.head.weight.grad, weight.grad)


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_constant_costs_the_shares_entropy_and_is_left_at_once(share):
    x, _ = ordinary()
    labels = torch.where(torch.arange(16) < 16 * share, -1, 0)
    task = task_of(5, floor=0.0, share=share)
    layer = task.embedder.head
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.arange(WIDTH))
        layer.bias[1] = math.log(share / (1 - share)) / 4
    loss = task(batch_of(x, labels))["loss"]
    loss.backward()
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert loss.item() == pytest.approx(entropy, rel=1e-12)
    # Nothing moves all images at once: the kinds' pulls are equal in every batch.
    assert layer.bias.grad.abs().max() < 1e-15
    gap = x[labels == -1].mean(0) - x[labels == 0].mean(0)
    slope = torch.tensor([-4.0, 4.0, 0, 0, 0, 0]).double()
    wanted = -share * (1 - share) * slope[:, None] * gap
    torch.testing.assert_close(layer.weight.grad, wanted, rtol=1e-12, atol=1e-15)
    assert slope.norm() == pytest.approx(2 * math.sqrt(2) * 2)


def test_the_useful_solution_has_the_loss_of_the_bound():
    for centers in (1, 4):
        options = methods.options("relative", centers=centers)
        normal, abnormal = prototypes(options, WIDTH)
        score = Prototypes(torch.cat([normal, abnormal[None]]), centers, options).score()
        bound = math.log1p(centers * (math.exp(-8) + math.exp(-16)))  # the second of the floor
        assert (functional.softplus(score[:-1]) <= bound * (1 + 1e-12)).all()
        assert functional.softplus(-score[-1]) <= bound


def contaminated(task, x, labels, pi, share):
    """The loss, its kinds' means taken apart."""
    score = Prototypes(task.embedder(x)[1], 1, task.options).score()
    known = labels == -1
    normal = (
        functional.softplus(score[~known]).mean() - pi * functional.softplus(score[known]).mean()
    )
    far = functional.softplus(-score[known]).mean()
    return (1 - share) * normal.clamp(min=0) + share * far, normal


@pytest.mark.parametrize(("pi", "clamped"), [(0.1, False), (0.9, True)])
def test_contamination_takes_hidden_images_off_as_far_as_it_can(pi, clamped):
    x, labels = ordinary()
    task = task_of(5, contamination=pi)
    task.odds.copy_(torch.tensor([4 / 12, 4 / 12]))
    with torch.no_grad():  # known abnormal images score high
        x[labels == -1] += 0.5 * torch.sign(
            task.embedder.head.weight[1] - task.embedder.head.weight[0]
        )
    wanted, normal = contaminated(task, x, labels, pi, 0.25)
    assert (normal < 0) == clamped
    known = torch.autograd.grad(wanted, list(task.embedder.parameters()))
    loss = task(batch_of(x, labels))["loss"]
    found = torch.autograd.grad(loss, list(task.embedder.parameters()))
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(found, known)
    assert task.whole_batch and not task_of(5).whole_batch


CLAMPS = {"negative": [-3.0, 2.0], "positive": [3.0, -2.0], "both": [-1.0, -2.0]}


def clamps():
    from selftaught import distributed

    given = {}
    for name, values in CLAMPS.items():
        own = torch.tensor(values[distributed.rank()], requires_grad=True)
        loss = mean_above_zero(2 * own)
        loss.backward()
        given[name] = loss.item(), own.grad.item()
    return given


def test_the_clamp_is_of_the_mean_of_all_ranks():
    ranks = run_ranks(2, clamps)
    for name, values in CLAMPS.items():
        (first, slope), (second, other) = (rank[name] for rank in ranks)
        open_ = sum(values) > 0
        assert (first + second) / 2 == (sum(values) if open_ else 0)
        assert slope == other == (2 if open_ else 0)


# Of three kinds of image: known abnormal ones, and hidden ones and normals among the others.
ABNORMAL, HIDDEN, NORMAL = (torch.tensor(n) for n in ([2, 2, 4], [4, 4, 8], [20, 8, 4]))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("relative", {}),
        ("relative", {"centers": 3, "share": 0.5}),
        ("relative", {"contamination": 1 / 3}),
        ("classifier", {"balance": "sample"}),
        ("classifier", {"balance": "sample", "share": 0.125}),
        ("classifier", {"balance": "weight"}),
        ("classifier", {"balance": "none"}),
        ("classifier", {"balance": "weight", "normals": "known"}),
    ],
)
def test_the_probability_of_a_learnt_logit_is_how_often_it_is_true(name, options):
    others = HIDDEN + NORMAL
    counts = torch.cat([ABNORMAL, others])
    labels = torch.repeat_interleave(torch.tensor([-1] * 3 + [0] * 3), counts)
    kinds = torch.repeat_interleave(torch.arange(3).repeat(2), counts)
    given = methods.options(name, batch_size=64, **options)
    if getattr(given, "normals", "") == "known":
        labels[labels == 0] = torch.arange(48) % 2  # half of each kind is known to be normal
    task = methods.load(name)(given, Network(head=(4, WIDTH), image_size=32)).double()
    start = starts.Start(task, 32, count=len(labels))
    start.labels, start.batch_size = labels, 64
    task.begin(start)
    if task.known_share:  # a batch of the share, with each kind as often as in expectation
        known = round(64 * task.known_share)
        weights = torch.where(labels == -1, known / 8, (64 - known) / 48)
    else:
        weights = torch.ones(len(labels))
    copies = torch.repeat_interleave(torch.arange(len(labels)), (6 * weights).round().long())
    layer = Layer(3)
    if name == "classifier":
        task.net.encoder, task.net.head = layer.encoder, layer.head
    else:
        task.embedder = layer
    images = torch.eye(3, dtype=torch.float64)
    batch = batch_of(images[kinds[copies]], labels[copies])
    optimizer = torch.optim.LBFGS(
        [one for one in task.parameters() if one.requires_grad],
        max_iter=400,
        tolerance_grad=1e-11,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimizer.zero_grad()
        loss = task(batch)["loss"]
        loss.backward()
        return loss

    optimizer.step(closure)
    hidden = HIDDEN if given.__dict__.get("contamination") else 0 * HIDDEN
    normal = others - hidden if getattr(given, "normals", "") != "known" else others / 2
    wanted = (ABNORMAL + hidden) / (ABNORMAL + hidden + normal)
    with torch.no_grad():
        outputs = task.eval().scorer()(images)
    torch.testing.assert_close(outputs["probability"], wanted.double(), rtol=1e-4, atol=1e-6)


def test_declared_strata_are_a_cross_entropy_among_normal_prototypes():
    x, labels = ordinary()
    stratum = torch.tensor([0, 1, -1, 2] * 4)
    more = {"strata": "part", "strata_weight": 0.7}
    task, alone = (task_of(5, ("a", "b", "c"), **more) for _ in range(2))
    alone.load_state_dict(task.state_dict())
    assert task.centers == 3
    loss = task(batch_of(x, labels, stratum=stratum))["loss"]
    without = alone(batch_of(x, labels, stratum=torch.full((16,), -1)))["loss"]
    z = task.embedder(x)[1]
    normal, _ = prototypes(methods.options("relative", centers=3), WIDTH)
    log_shares = (-(z[:, None] - normal).square().sum(2)).log_softmax(1)
    declared = stratum >= 0
    wanted = -log_shares[declared, stratum[declared]].sum() / 16
    torch.testing.assert_close(loss - without, 0.7 * wanted)


def test_odds_count_images_of_the_training_set_and_of_a_batch():
    task = methods.load("relative")(methods.options("relative"), Network(image_size=32)).double()
    start = starts.Start(task, 32)
    start.rows = np.arange(10)  # two of which are known to be abnormal
    start.batch_size = 10
    task.begin(start)
    np.testing.assert_allclose(task.odds.numpy(), [2 / 8, 2 / 8])
    assert dataclasses.asdict(task.options)["share"] == 0.25
