"""SupCon as a pretext: who attracts whom, and what is logged of it."""

import math

import pytest
import torch

from selftaught import methods
from selftaught.losses import supcon_loss
from selftaught.models.network import Network
from tests import thin
from tests.ranks import run_ranks

KNOWN = [-1, 0, 1, -1, -1, 0]


def task_of(name, head=(8, 4)):
    with thin.patch():
        return methods.load(name)(methods.options(name), Network(head=head, seed=5)).double()


def batch_of(labels):
    generator = torch.Generator().manual_seed(1)
    views = torch.rand(len(labels), 2, 1, 32, 32, generator=generator, dtype=torch.float64)
    return {"views": views, "semi_label": torch.tensor(labels)}


@pytest.mark.parametrize("labels", [[0, 1, 0, 1, 0, 0], [0, 1, -1, 1, 0, 0]])
def test_without_a_pair_of_known_abnormal_images_it_is_ntxent(labels):
    batch = batch_of(labels)
    plain, known = (task_of(name)(batch)["loss"] for name in ("ntxent", "supcon"))
    torch.testing.assert_close(known, plain, rtol=1e-12, atol=0)


def test_known_abnormal_images_attract_each_other_and_no_others_do():
    task, batch = task_of("supcon"), batch_of(KNOWN)
    first, second = task.embedder(batch["views"].transpose(0, 1).flatten(0, 1))[1].chunk(2)
    z = torch.nn.functional.normalize(torch.cat([first, second]), dim=1)
    similarities = z @ z.T / task.options.temperature
    similarities.fill_diagonal_(-math.inf)
    log_p = similarities.log_softmax(1)
    abnormal = torch.tensor([0, 3, 4, 6, 9, 10])
    rows = []
    for row in range(12):
        positives = abnormal[abnormal != row] if row in abnormal else torch.tensor([(row + 6) % 12])
        rows.append(-log_p[row, positives].mean())
    torch.testing.assert_close(task(batch)["loss"], torch.stack(rows).mean())


@pytest.mark.parametrize("known", [0, 5, 24])
def test_where_all_embeddings_are_equal_labels_mean_nothing(known):
    z = torch.ones(24, 4)
    labels = torch.where(torch.arange(24) < known, 0, -1)
    loss = float(supcon_loss(z, z, labels, 0.5))
    assert loss == pytest.approx(math.log(47), abs=1e-5)  # 3.85


def figures_of(labels):
    from selftaught import distributed

    mine = [part.tolist() for part in torch.tensor(labels).chunk(distributed.world_size())]
    outputs = task_of("supcon")(batch_of(mine[distributed.rank()]))
    return {name: float(one.detach()) for name, one in outputs.items() if name != "loss"}


@pytest.mark.parametrize(
    ("labels", "number", "two"), [(KNOWN, 3, 1), ([0, -1, 1, 0], 1, 0), ([0, 0, 1, 0], 0, 0)]
)
def test_known_abnormal_images_of_a_batch_are_counted(labels, number, two):
    assert figures_of(labels) == {"known_abnormal": number, "two_known_abnormal": two}


def test_they_are_counted_over_all_ranks():
    found = run_ranks(2, figures_of, [-1, 0, 0, -1])
    assert found == [{"known_abnormal": 2, "two_known_abnormal": 1}] * 2
