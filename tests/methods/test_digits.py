"""Objectives on handwritten digits: right ones reach what was measured, wrong ones do not."""

import copy

import pytest
import torch
from torch import nn

from selftaught import methods
from selftaught.losses import mad_loss, mad_loss_with_assignment
from selftaught.methods import kinds
from selftaught.models.network import Network
from tests import thin
from tests.methods import digits

NORMAL, MINUS = "known abnormal digits trained as normal", "-d2 in place of 1/d2"


def deep_sad(cells, wrong=""):
    """AUROCs of Deep SAD, or of a wrong variant of it."""
    cells = copy.deepcopy(cells)

    def loss(batch):
        z = cells.encoder(batch.images) - cells.centers
        if wrong == MINUS:
            return z.square().sum(2) * torch.where(batch.labels == -1, -1, 1)
        labels = torch.zeros_like(batch.labels) if wrong == NORMAL else batch.labels
        losses = mad_loss(z.flatten(0, 1), torch.zeros(1, 16), labels.flatten(), reduction="none")
        return losses.view(labels.shape)

    cells.fit([cells.encoder], loss)
    return cells.auroc(lambda z: (z - cells.centers).square().sum(2))


def classified(cells, kind):
    """AUROCs of a classifier by its loss."""
    cells = copy.deepcopy(cells)
    count, balanced = len(cells.sizes), kind != "bce"
    layer = nn.ParameterList([torch.zeros(count, 1, 16), torch.zeros(count, 1)])
    ratio = torch.tensor([size / digits.KNOWN - 1 for size in cells.sizes])[:, None]

    def score(z):
        if kind == "hypersphere":
            return kinds.radius(z.flatten(0, 1)).view(z.shape[:2])
        return (z * layer[0]).sum(2) + layer[1]

    def loss(batch):
        scores, abnormal = score(cells.encoder(batch.images)), batch.labels == -1
        if kind == "hypersphere":
            return kinds.hypersphere(scores, abnormal)
        if kind == "deviation":
            return kinds.deviation(scores, abnormal, kinds.references(0, batch.step))
        return kinds.bce(scores, abnormal) * torch.where(abnormal, ratio, 1.0)

    cells.fit([cells.encoder, *([] if kind == "hypersphere" else [layer])], loss, balanced=balanced)
    return cells.auroc(score)


def soft_deep_sad(cells, alpha):
    """AUROCs of SOEL with one centre."""
    cells, tasks = copy.deepcopy(cells), []
    for labels, size in zip(cells.labels, cells.sizes, strict=True):
        with thin.patch():
            network = Network(head=(4,), images=size)
            tasks.append(methods.load("soel")(methods.options("soel", alpha=alpha), network))
        tasks[-1].rows.copy_(torch.arange(size))
        tasks[-1].known.copy_(labels[:size])

    def loss(batch):
        z = cells.encoder(batch.images) - cells.centers
        means = []
        for size, task, *rows in zip(
            cells.sizes, tasks, z, batch.labels, batch.places, strict=True
        ):
            near = mad_loss_with_assignment(
                *rows[:1], torch.zeros(1, 16), rows[1], reduction="none"
            )
            means.append(task.loss(near, {"ids": rows[2]}))
            if (batch.step + 1) % (size // digits.BATCH) == 0:
                task.close_epoch()
        return torch.stack(means)[:, None]

    cells.fit([cells.encoder], loss)
    return cells.auroc(lambda z: (z - cells.centers).square().sum(2))


def test_deep_sad_on_the_hardest_cells():
    cells = digits.Cells(digits.HARDEST, seed=0)
    assert deep_sad(cells).mean() >= 0.94
    for wrong in (NORMAL, MINUS):
        assert deep_sad(cells, wrong).mean() <= 0.92, wrong


@pytest.mark.slow
def test_every_objective_on_all_cells():
    cells = digits.Cells(digits.CELLS, seed=0)
    assert deep_sad(cells).mean() >= 0.965
    for wrong in (NORMAL, MINUS):
        assert deep_sad(cells, wrong).mean() <= 0.945, wrong
    # Measured elsewhere 0.976, 0.937 and 0.867, with standard deviations of 0.03, 0.08 and 0.12
    # over the cells: gates at two standard errors of the mean.
    assert classified(cells, "hypersphere").mean() >= 0.96
    assert classified(cells, "deviation").mean() >= 0.90
    assert 0.81 <= classified(cells, "bce").mean() <= 0.925


@pytest.mark.slow
def test_soft_labels_help_where_unknown_digits_are_polluted():
    # Deep SAD and SOEL, measured on the same cells without pollution 0.977, with 10 % of the
    # unknown images abnormal 0.927 and 0.949.
    cells = digits.Cells(digits.CELLS, seed=0, pollution=0.1)
    without, soft = (soft_deep_sad(cells, alpha).mean() for alpha in (0.0, 0.1))
    assert without == pytest.approx(deep_sad(cells).mean(), abs=1e-6)
    assert soft >= without + 0.01
