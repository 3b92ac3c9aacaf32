"""Deep SVDD: its losses, its sphere, and which images it looks at."""

import numpy as np
import pytest
import torch
from torch import nn

from selftaught import methods
from selftaught.methods.svdd import RING, Svdd, radius_squared, soft_losses
from selftaught.models.network import Network
from tests import thin


def task_of(**options):
    with thin.patch():
        task = Svdd(methods.options("svdd", **options), Network(head=(7, 4))).double()
    task.center.copy_(torch.tensor([0.5, -0.3, 0.2, 1.0]))
    return task


def batch_of(labels=(0, -1, 1, 0, -1, 0), epoch=0):
    generator = torch.Generator().manual_seed(len(labels))
    views = torch.rand(len(labels), 1, 1, 32, 32, generator=generator, dtype=torch.float64)
    return {"views": views, "semi_label": torch.tensor(labels), "epoch": epoch}


def distances(task, batch):
    """Squared distances of a batch with its own statistics."""
    z = task.embedder(batch["views"][:, 0])[1]
    return ((z - task.center) ** 2).sum(1)


@pytest.mark.parametrize("nu", [0.05, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("count", [10, 1001])
def test_the_radius_is_where_the_loss_is_smallest(nu, count):
    squared = torch.rand(count, generator=torch.Generator().manual_seed(1)).double()
    best = radius_squared(squared, nu)
    losses = torch.stack([soft_losses(squared, one, nu).mean() for one in squared])
    assert float(soft_losses(squared, best, nu).mean()) <= float(losses.min()) + 1e-12
    assert float((squared > best).double().mean()) <= nu
    order = squared.sort().values
    assert float(best) == pytest.approx(float(np.quantile(squared, 1 - nu, method="higher")))
    assert nu < 1 or best == order[0]


def test_a_whole_nu_is_the_hard_boundary_up_to_the_radius():
    squared = torch.rand(50).double() + 1
    for radius2 in (0.0, 0.7, 1.0):
        torch.testing.assert_close(soft_losses(squared, torch.tensor(radius2), 1.0), squared)


def test_what_is_left_out_has_no_part_in_the_radius():
    squared = torch.tensor([3.0, -1.0, 1.0, -1.0, 2.0])
    assert float(radius_squared(squared, 0.5)) == 2.0
    assert radius_squared(torch.full((4,), -1.0), 0.5).isnan()


def test_the_hard_loss_is_the_mean_of_images_not_known_to_be_abnormal():
    task, batch = task_of(), batch_of()
    loss = task(batch)["loss"]
    normal = batch["semi_label"] != -1
    torch.testing.assert_close(loss, distances(task, batch)[normal].mean())
    assert float(task(batch_of((-1, -1, -1)))["loss"].detach()) == 0.0


def test_known_abnormal_images_have_no_gradient_of_their_own():
    task, batch = task_of().eval(), batch_of()  # with batch statistics they would, through others
    batch["views"].requires_grad_()
    task(batch)["loss"].backward()
    per_image = batch["views"].grad.flatten(1).abs().sum(1)
    assert ((per_image == 0) == (batch["semi_label"] == -1)).all()


def test_nothing_that_learns_could_map_all_images_to_the_centre():
    task = task_of()
    learning = dict((n, p) for n, p in task.named_parameters() if p.requires_grad)
    assert learning and not any(n.endswith("bias") for n in learning)
    norms = [m for m in task.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(p.requires_grad for m in norms for p in m.parameters())


def test_the_soft_boundary_step_by_step():
    task = task_of(boundary="soft", nu=0.3, warmup_epochs=1, epochs=3)
    batch = batch_of()
    normal = batch["semi_label"] != -1
    seen = []
    for step in range(6):
        task.before_step(step)
        wanted = 0.0 if step < 3 else float(np.quantile(seen, 0.7, method="higher"))
        assert float(task.radius2) == pytest.approx(wanted, rel=1e-12)
        squared = distances(task, batch)[normal]
        outside = (squared - wanted).clamp(min=0)
        torch.testing.assert_close(task(batch)["loss"], wanted + outside.mean() / 0.3)
        seen += squared.tolist()
        with torch.no_grad():
            for parameter in task.embedder.head.parameters():
                parameter *= 0.9
        if step == 2:
            assert task.close_epoch()["radius"] == 0.0
    figures = task.close_epoch()
    assert figures["radius"] == pytest.approx(wanted**0.5)
    assert figures["outside"] == pytest.approx(np.mean(np.array(seen) > wanted))


def test_the_radius_is_of_the_last_distances_alone():
    task = task_of(boundary="soft", warmup_epochs=0)
    for first in range(0, 3000, 750):
        task._remember(torch.arange(first, first + 750).double())
    assert torch.equal(task.ring.sort().values, torch.arange(3000 - RING, 3000).double())
    task._remember(torch.arange(5000).double())
    assert torch.equal(task.ring.sort().values, torch.arange(5000 - RING, 5000).double())
    task.before_step(0)
    assert float(task.radius2) == 5000 - 1 - int(0.05 * (RING - 1))


@pytest.mark.parametrize("boundary", ["hard", "soft"])
def test_the_score_is_the_squared_distance_beyond_the_radius(boundary):
    task = task_of(boundary=boundary, warmup_epochs=0).eval()
    task.radius2.fill_(0.25 if boundary == "soft" else 0.0)
    images = batch_of()["views"][:, 0]
    out = task.scorer()(images)
    wanted = distances(task, batch_of()) - task.radius2
    torch.testing.assert_close(out["score"], wanted)
    assert len(out["score"].unique()) == len(images)


class Start:
    seed, rows = 3, np.arange(10)
    labels = torch.tensor([0, -1, 0, 1, 0] * 2)
    z = torch.randn(10, 4, generator=torch.Generator().manual_seed(1)) * 0.2

    def weights(self):
        return {}

    def features(self, rows, *, random=False):
        assert not random
        return self.z[rows]


def test_the_centre_is_the_mean_of_images_not_known_to_be_abnormal_away_from_zero():
    task, start = task_of(center_epsilon=0.013), Start()
    task.begin(start)
    mean = start.z[start.labels != -1].double().mean(0)
    wanted = torch.where(mean.abs() < 0.013, mean.sign() * 0.013, mean)
    assert (mean.abs() < 0.013).any() and (mean.abs() > 0.013).any()
    torch.testing.assert_close(task.center, wanted)


def test_a_soft_boundary_without_a_radius_is_refused():
    with pytest.raises(ValueError, match="warmup_epochs is 10; allowed: 0 to 3, so that"):
        methods.options("svdd", boundary="soft", epochs=4)
    methods.options("svdd", epochs=4)
