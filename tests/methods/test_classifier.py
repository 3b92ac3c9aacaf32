"""Classifiers of known abnormal images: losses, weights of the kinds, and where they begin."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from selftaught import methods
from selftaught.errors import InputError
from selftaught.methods import noise
from selftaught.methods.kinds import (
    bce,
    deviation,
    hypersphere,
    kind_weights,
    radius,
    references,
)
from selftaught.models.network import Network
from tests import thin
from tests.methods import runs
from tests.ranks import run_ranks

VARIANTS = {
    "devnet": {"loss": "deviation", "balance": "sample"},
    "hypersphere": {"loss": "hypersphere", "balance": "sample"},
    "known": {"normals": "known"},
}


@pytest.fixture(autouse=True)
def thin_encoder():
    torch.set_num_threads(1)
    with thin.patch():
        yield


def task_of(name="classifier", images=0, **options):
    options = methods.options(name, **options)
    return methods.load(name)(options, Network(head=(8, 4), images=images, seed=5))


class Start:
    """What a task is offered: labels of the images, and the weights of no stage."""

    seed = 3

    def __init__(self, labels, before=None):
        self.labels, self.rows = torch.as_tensor(labels), np.arange(len(labels))
        self.before = before or {}

    def weights(self):
        return self.before


def labels_of(abnormal, unknown, normal):
    return torch.repeat_interleave(
        torch.tensor([-1, 0, 1]), torch.tensor([abnormal, unknown, normal])
    )


def gradient(losses, at):
    at = at.detach().requires_grad_()
    return torch.autograd.grad(losses(at).sum(), at)[0]


def test_gradients_are_those_of_the_formulas():
    scores = torch.tensor([-30.0, -2.0, 0.0, 0.3, 4.9, 5.2, 40.0])
    exact = scores.double()
    for abnormal in (True, False):
        kind = torch.full((len(scores),), abnormal)
        found = gradient(lambda s: bce(s, kind), scores)  # noqa: B023
        torch.testing.assert_close(found.double(), exact.sigmoid() - float(abnormal))
        mean, spread = 0.02, 0.98
        found = gradient(lambda s: deviation(s, kind, (mean, spread)), scores)  # noqa: B023
        away = (exact - mean) / spread
        wanted = -(away < 5).double() / spread if abnormal else away.sign() / spread
        torch.testing.assert_close(found.double(), wanted)


def test_hypersphere_is_the_formula_from_tiny_to_large_distances():
    z = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    z *= torch.logspace(-2, 2, 60)[:, None]
    squared = z.double().square().sum(1)
    h = (squared + 1).sqrt() - 1
    torch.testing.assert_close(radius(z).double(), h, rtol=1e-6, atol=0)
    slope = z.double() / (squared + 1).sqrt()[:, None]
    for abnormal in (True, False):
        kind = torch.full((60,), abnormal)
        value = hypersphere(radius(z), kind)
        wanted = -torch.log1p(-(-h).exp()) if abnormal else h
        torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-7)
        found = gradient(lambda z: hypersphere(radius(z), kind), z)  # noqa: B023
        factor = -1 / torch.expm1(h) if abnormal else torch.ones_like(h)
        torch.testing.assert_close(found.double(), factor[:, None] * slope, rtol=1e-4, atol=1e-6)
    # On the origin the logarithm has its pole.
    zero = torch.zeros(2, 4)
    pole = hypersphere(radius(zero), torch.tensor([True, False]))
    torch.testing.assert_close(pole, torch.tensor([-math.log(1e-6), 0.0]))
    assert (
        gradient(lambda z: hypersphere(radius(z), torch.tensor([True, False])), zero)
        .isfinite()
        .all()
    )


def test_reference_scores_depend_on_seed_and_step_alone():
    drawn = noise.normal(4, 9, [0], (5000,))[0].double()
    torch.manual_seed(1)
    first = references(4, 9)
    torch.manual_seed(2)
    assert references(4, 9) == first == (float(drawn.mean()), float(drawn.std()))
    assert len({first, references(4, 10), references(5, 9)}) == 3
    # At a score of 5 standard deviations above their mean an abnormal image costs nothing.
    mean, spread = first
    scores = torch.tensor([mean + 5 * spread, mean, mean + spread])
    losses = deviation(scores, torch.tensor([True, True, False]), first)
    torch.testing.assert_close(losses, torch.tensor([0.0, 5.0, 1.0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["classifier", "supervised"])
@pytest.mark.parametrize("balance", ["none", "weight"])
def test_a_classifier_begins_at_the_prior(name, balance):
    task = task_of(name, balance=balance)
    task.begin(Start(labels_of(1004, 17072, 961)))
    images = torch.rand(3, 1, 1, 32, 32)
    loss = {}
    for label in (-1, 0, 1):
        batch = {"views": images, "semi_label": torch.full((3,), label), "step": 0}
        loss[label] = task(batch)["loss"].item()
    p = 1004 / 19037
    mean = p * loss[-1] + (1 - p) * loss[0]
    assert loss[0] == loss[1]
    if balance == "none":
        assert mean == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p), abs=1e-6)
        assert mean == pytest.approx(0.2065, abs=5e-5)
    else:  # both kinds weigh the same, so that no score is better than 0
        assert p * loss[-1] == pytest.approx((1 - p) * loss[0], rel=1e-6)
        assert mean == pytest.approx(2 * (1 - p) * math.log(2), rel=1e-6)


def features_and_labels():
    generator = torch.Generator().manual_seed(7)
    abnormal = torch.arange(400) < 40
    x = torch.randn(400, 6, generator=generator, dtype=torch.float64)
    x[abnormal] += torch.tensor([1.0, -0.5, 0.4, 0, 0, 0])
    return x, abnormal, torch.where(abnormal, -1, 0)


def fitted(loss):
    """The linear layer that minimises loss(logits of weight and bias)."""
    layer = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([layer], max_iter=500, tolerance_grad=1e-10, tolerance_change=0)

    def closure():
        optimizer.zero_grad()
        value = loss(layer[:6], layer[6])
        value.backward()
        return value

    optimizer.step(closure)
    return layer.detach()


@pytest.mark.parametrize("balance", ["none", "weight"])
def test_a_linear_layer_is_scikit_learns_logistic_regression(balance):
    x, abnormal, labels = features_and_labels()
    weights, penalty = kind_weights(labels, "all", balance)[labels + 1], 0.01

    def loss(weight, bias):
        rows = weights * bce(x @ weight + bias, abnormal)
        return rows.mean() + penalty / 2 * weight.square().sum()

    layer = fitted(loss)
    reference = LogisticRegression(
        C=1 / (penalty * len(x)),
        class_weight={False: 1, True: 9 if balance == "weight" else 1},
        tol=1e-10,
        max_iter=1000,
    ).fit(x, abnormal)
    ours, theirs = x @ layer[:6] + layer[6], reference.decision_function(x)
    assert abs(roc_auc_score(abnormal, ours) - roc_auc_score(abnormal, theirs)) < 1e-3
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_a_weight_is_a_row_that_many_times():
    x, abnormal, labels = features_and_labels()
    weights = kind_weights(labels, "all", "weight")
    assert weights.tolist() == [9, 1, 1]
    copies = torch.repeat_interleave(torch.arange(400), torch.where(abnormal, 9, 1))
    weight = torch.linspace(-1, 1, 6, dtype=torch.float64)
    weighted = gradient(lambda w: weights[labels + 1] * bce(x @ w, abnormal), weight)
    copied = gradient(lambda w: bce(x[copies] @ w, abnormal[copies]), weight)
    torch.testing.assert_close(weighted, copied)


def test_weights_with_known_normal_images_alone_are_a_mean_over_what_counts():
    labels = labels_of(4, 30, 6)
    none = kind_weights(labels, "known", "none")
    assert none.tolist() == [4, 0, 4]  # 40 images, 10 of which count
    weight = kind_weights(labels, "known", "weight")
    assert weight.tolist() == [6, 0, 4]
    assert kind_weights(labels, "all", "sample").tolist() == [1, 1, 1]


@pytest.mark.parametrize("variant", ["bce", "hypersphere", "deviation"])
def test_a_score_is_high_for_known_abnormal_images(variant):
    task = task_of(loss=variant)
    generator = torch.Generator().manual_seed(1)
    labels = torch.tensor([-1, 0, 0, 1] * 8)
    task.begin(Start(labels))
    images = torch.rand(32, 1, 1, 32, 32, generator=generator)
    images[labels == -1, ..., 8:20, 8:20] = 1.0
    optimizer = torch.optim.Adam(task.parameters(), 3e-3)
    for step in range(12):
        optimizer.zero_grad()
        task({"views": images, "semi_label": labels, "step": step})["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        scores = task.eval().scorer()(images[:, 0])["score"]
    assert roc_auc_score(labels == -1, scores) > 0.9


def test_features_are_those_that_the_layer_sees():
    images = torch.rand(2, 1, 32, 32)
    for name, width in (("classifier", 4), ("supervised", thin.WIDTH)):
        task = task_of(name).eval()
        h, z = task.features(images)
        outputs = task.scorer()(images)
        assert h.shape == (2, thin.WIDTH) and z.shape == (2, width)
        assert torch.equal(outputs["h"], h) and torch.equal(outputs["z"], z)
        # Nothing is left over that DistributedDataParallel would wait for.
        task.train()
        task({"views": images[:, None], "semi_label": torch.tensor([-1, 0]), "step": 0})[
            "loss"
        ].backward()
        assert all(one.grad is not None for one in task.parameters())


def test_the_encoder_of_the_stage_before_is_taken():
    before = {
        f"embedder.{key}": one + 1
        for key, one in Network(head=(8, 4)).embedder().state_dict().items()
    }
    task = task_of()
    task.begin(Start(labels_of(2, 4, 0), before))
    for key, one in task.net.encoder.state_dict().items():
        assert torch.equal(one, before[f"embedder.encoder.{key}"])
    with pytest.raises(InputError, match="classifier starts from the state `embedder.encoder`"):
        task.begin(Start(labels_of(2, 4, 0), {"net.weight": torch.ones(2)}))


@pytest.mark.parametrize(
    ("options", "labels", "line"),
    [
        ({}, (0, 9, 1), "loss is 'bce', but no training image is known to be abnormal; allowed: "),
        ({"normals": "known"}, (3, 9, 0), "normals is 'known', but no .*; allowed: all, or split."),
        ({}, (3, 0, 0), "normals is 'all', but no training image counts as normal; allowed: "),
    ],
)  # fmt: skip
def test_a_training_set_without_a_kind_is_refused(options, labels, line):
    with pytest.raises(ValueError, match=line):
        task_of(**options).check(labels_of(*labels))
    task_of(**options).check(labels_of(1, 1, 1))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"loss": "hypersphere", "features": "h"}, "features is 'h'; allowed: z with loss hyper"),
        ({"normals": "known", "balance": "sample"}, "balance is 'sample'; allowed: none, weight"),
        ({"batch_size": 1, "balance": "sample"}, "batch_size is 1; allowed: 2 or more with"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, line):
    with pytest.raises(ValueError, match=line):
        methods.options("classifier", **options)


def variants(root, folder):
    found = {}
    settings = {"precision": "fp64", "epochs": 1, "optimizer": "sgd", "lr": 0.1}
    with thin.patch():
        for name, more in VARIANTS.items():
            weights = runs.train(root, folder / name, "classifier", **settings, **more).weights
            found[name] = weights["net.head.layers.0.weight"].numpy()
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return runs.write(tmp_path_factory.mktemp("images"))


def test_two_ranks_learn_what_one_does_with_every_loss(root, tmp_path):
    one = variants(root, tmp_path / "one")
    for rank in run_ranks(2, variants, root, tmp_path / "two"):
        for name, value in one.items():
            np.testing.assert_allclose(rank[name], value, rtol=1e-7, atol=1e-9, err_msg=name)


class Killed(Exception):
    pass


def test_a_killed_run_draws_the_same_reference_scores_and_batches(root, tmp_path):
    def kill(event, **facts):
        if event == "step" and facts["stage"] == "finetune":
            assert (facts["batch"]["semi_label"] == -1).sum() == 4, "half of the batch"
            if facts["step"] == 3:
                torch.manual_seed(8)  # what a new process would not share
                raise Killed

    options = {"lr": 0.1, **VARIANTS["devnet"]}
    whole = runs.train(root, tmp_path / "whole", "classifier", **options).weights
    with pytest.raises(Killed):
        runs.train(root, tmp_path / "killed", "classifier", on_event=kill, save_every=1, **options)
    again = runs.train(root, tmp_path / "killed", "classifier", **options).weights
    assert all(torch.equal(whole[key], again[key]) for key in whole)
