"""SOEL: who gets a soft label, what it costs, and that alpha 0 is Deep SAD."""

import numpy as np
import pytest
import torch

from selftaught import methods
from selftaught.methods.soel import abnormal_share
from selftaught.models.network import Network
from tests import thin
from tests.methods import runs
from tests.methods.test_spheres import Start


@pytest.fixture(autouse=True)
def thin_encoder():
    torch.set_num_threads(1)
    with thin.patch():
        yield


def begun(**options):
    """A task that has begun on 12 images, every fourth known abnormal, unknown before it two."""
    task = methods.load("soel")(
        methods.options("soel", **options), Network(head=(4,), images=12, seed=5)
    )
    task.begin(Start())
    return task


def batch_of(ids):
    return {
        "views": torch.rand(len(ids), 1, 1, 32, 32, generator=torch.Generator().manual_seed(2)),
        "semi_label": Start.labels[ids],
        "ids": torch.tensor(ids),
    }


def test_the_most_distant_unknown_images_are_labelled():
    task = begun(alpha=0.4)
    task.distances.copy_(torch.tensor([3, 1, 99, 99, 7, 2, 99, 99, 0, 7, 99, 99.0]))
    figures = task.close_epoch()
    # Unknown are 0, 1, 4, 5, 8 and 9: 0.4 of six are two.
    assert task.soft.nonzero().flatten().tolist() == [4, 9]
    assert (figures["alpha"], figures["soft_labels"]) == (pytest.approx(0.4), 2)
    task.distances[0] = 50
    task.close_epoch()
    assert task.soft.nonzero().flatten().tolist() == [0, 4], "ranked anew, the first at a tie"


def test_the_loss_of_a_soft_label_is_half_of_each():
    task = begun(alpha=0.1).double()
    task.centers.normal_(generator=torch.Generator().manual_seed(0))
    ids = [1, 2, 3, 4]
    batch = batch_of(ids)
    batch["views"] = batch["views"].double()
    task.soft[[4, 8]] = True
    loss = task(batch)["loss"]
    z = task.embedder(batch["views"][:, 0])[1]
    d2 = (z - task.centers).square().sum(1)
    near, far = d2, 1 / (d2 + 1e-6)
    wanted = torch.stack([near[0], near[1] + 1e-6, far[2], (near[3] + far[3]) / 2]).mean()
    torch.testing.assert_close(loss, wanted)
    weight = task.embedder.head.layers[0].weight
    torch.testing.assert_close(
        torch.autograd.grad(loss, weight)[0], torch.autograd.grad(wanted, weight)[0]
    )
    torch.testing.assert_close(task.distances[ids], d2.detach().float().double(), rtol=1e-6, atol=0)
    task.eval()
    before = task.distances.clone()
    task(batch_of([5, 6]) | {"views": batch["views"][:2]})
    assert torch.equal(before, task.distances), "only training is remembered"


def test_alpha_zero_is_deep_sad_bit_for_bit(tmp_path):
    root = runs.write(tmp_path)
    ours = runs.train(root, tmp_path / "a", "soel", alpha=0.0, centers=1).weights
    theirs = runs.train(root, tmp_path / "b", "spheres", centers=1).weights
    assert theirs.keys() < ours.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    soft = runs.train(root, tmp_path / "c", "soel", alpha=0.5, centers=1).weights
    assert any(not torch.equal(soft[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
def test_the_share_of_abnormal_images_is_estimated(share):
    generator = np.random.default_rng(0)
    abnormal, normal = generator.normal(1.5, 1, 600), generator.normal(0, 1, 600)
    unknown = generator.normal(0, 1, 4000)
    unknown[: round(share * 4000)] += 1.5
    found = abnormal_share(*map(torch.from_numpy, (abnormal, normal, unknown)))
    assert found == pytest.approx(share, abs=0.05)


def test_too_few_scores_are_no_estimate():
    one, some = torch.tensor([1.0]), torch.tensor([1.0, 2.0, 3.0])
    assert abnormal_share(one, some, some) == abnormal_share(some, one.repeat(4), some) == 0
    assert abnormal_share(some, some, one[:0]) == 0
    # A score that no kind comes near leaves the estimate where it begins.
    assert 0 <= abnormal_share(some, some, torch.tensor([1e6])) <= 1


def test_alpha_is_estimated_once_after_the_first_epoch():
    task = begun()
    generator = torch.Generator().manual_seed(1)
    task.distances.copy_(torch.rand(12, generator=generator))
    task.distances[3::4] += 20
    task.distances[4] = 20.5
    first = task.close_epoch()["alpha"]
    assert first == pytest.approx(1 / 6, abs=0.05)
    assert task.check_epoch(0) == []
    task.distances[:] = torch.rand(12, generator=generator)
    assert task.close_epoch()["alpha"] == first
    none = begun()
    assert none.close_epoch()["soft_labels"] == 0  # nothing was seen
    assert "alpha is estimated as 0" in none.check_epoch(0)[0]


@pytest.mark.parametrize("alpha", [-0.1, 0.6, float("nan")])
def test_an_alpha_out_of_range_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha is .*; allowed: auto or 0 to 0.5"):
        methods.options("soel", alpha=alpha)


def test_an_estimate_from_hardly_any_known_images_is_refused():
    task = methods.load("soel")(methods.options("soel"), Network(head=(4,)))
    with pytest.raises(ValueError, match="alpha is 'auto', but fewer than 2 .* known to be normal"):
        task.check(torch.tensor([-1, -1, 0, 0, 1]))
    task.check(torch.tensor([-1, -1, 0, 1, 1]))
