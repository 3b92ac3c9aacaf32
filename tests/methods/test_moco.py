"""Momentum contrast: its loss, its key network, its queue, and who shares batch statistics."""

import copy
import math

import pytest
import torch
from torch import nn

from selftaught import methods
from selftaught.methods.moco import MoCo
from selftaught.models.grouped_norm import GroupedNorm
from selftaught.models.network import Network
from selftaught.training.engine import split_batch
from tests import thin

BATCH, WIDTH = 8, 6


class Start:
    seed = 3

    def note(self, text):
        self.text = text


def task_of(images=400, head=(WIDTH,), **options):
    """A task that has begun, in float64; its key network differs from its query network."""
    given = {"batch_size": BATCH, "group": 2, "momentum": 0.9, **options}
    with thin.patch():
        task = MoCo(methods.options("moco", **given), Network(head=head, images=images))
    task = task.double()
    task.begin(Start())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in task.keys.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return task


def batch_of(step=0, rows=BATCH):
    generator = torch.Generator().manual_seed(step)
    views = torch.rand(rows, 2, 1, 32, 32, generator=generator, dtype=torch.float64)
    return {"views": views, "ids": torch.arange(rows), "step": step, "epoch": 0}


def with_running_statistics(task):
    """The task with all norms in eval mode, so that an image's key is its own alone."""
    for module in task.modules():
        if isinstance(module, GroupedNorm):
            module.eval()
    return task


def directions(network, images):
    """What a network makes of images with running statistics, of length 1."""
    with torch.no_grad():
        return nn.functional.normalize(copy.deepcopy(network).eval()(images)[1])


def test_the_loss_is_cross_entropy_against_the_queue_of_the_steps_before():
    task, batch = with_running_statistics(task_of(queue=11)), batch_of()
    before = task.queue.clone()
    q, k = (
        directions(network, batch["views"][:, view])
        for view, network in enumerate((task.embedder, task.keys))
    )
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ before.T], 1) / 0.2
    out = task(batch)
    wanted = nn.functional.cross_entropy(logits, torch.zeros(BATCH, dtype=torch.int64))
    torch.testing.assert_close(out["loss"].detach(), wanted)
    torch.testing.assert_close(out["similarity_positive"], (q * k).sum(1).mean())
    torch.testing.assert_close(out["similarity_negative"], (q @ before.T).mean())
    assert torch.equal(task.queue, before), "micro-batches of a step see one queue"
    task.before_step(1)
    # In the order of the images, and behind what is left of the older ones.
    torch.testing.assert_close(task.queue, torch.cat([before[BATCH:], k]))


def test_equal_similarities_cost_the_logarithm_of_the_number_of_keys():
    task = task_of(queue=30)
    with torch.no_grad():
        for network in (task.embedder, task.keys):
            network.head.layers[0].weight.zero_()
            network.head.layers[0].bias.fill_(1)
        task.ring.fill_(WIDTH**-0.5)
    assert float(task(batch_of())["loss"].detach()) == pytest.approx(math.log(1 + 30), rel=1e-12)


def test_only_the_query_network_learns():
    task = task_of()
    task(batch_of())["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in task.embedder.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in task.keys.parameters())
    assert not task.ring.requires_grad


def test_the_key_network_follows_by_the_power_of_its_momentum():
    task = task_of(momentum=0.8)
    first = {name: p.clone() for name, p in task.keys.named_parameters()}
    for step in range(5):
        task.before_step(step)
    queries = dict(task.embedder.named_parameters())
    for name, parameter in task.keys.named_parameters():
        wanted = 0.8**5 * first[name] + (1 - 0.8**5) * queries[name]
        torch.testing.assert_close(parameter, wanted, rtol=1e-12, atol=1e-14)


def test_the_key_network_starts_as_the_query_network():
    with thin.patch():
        task = MoCo(methods.options("moco"), Network(images=400))
    pairs = zip(task.keys.state_dict().items(), task.embedder.state_dict().items(), strict=True)
    assert all(name == other and torch.equal(a, b) for (name, a), (other, b) in pairs)


def test_micro_batches_change_no_key_and_move_the_key_network_once():
    whole, parts = (with_running_statistics(task_of(queue=20)) for _ in range(2))
    for step in range(4):
        for task, count in ((whole, 1), (parts, 2)):
            task.before_step(step)
            for part in split_batch(batch_of(step), count):
                task(part)
    torch.testing.assert_close(parts.queue, whole.queue, rtol=1e-12, atol=1e-12)
    assert int(parts.written) == 4 * BATCH
    for one, other in zip(parts.keys.parameters(), whole.keys.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("length", [1, 5, 8, 13, 40])
def test_the_queue_holds_the_newest_keys_whatever_its_length(length):
    task = task_of(queue=length)
    given = [*task.queue.clone()]
    for step, rows in enumerate([8, 8, 6, 8, 8, 6, 6, 8]):
        task.before_step(step)
        keys = torch.full((rows, WIDTH), float(step)) + torch.arange(rows)[:, None] / 10
        task._keep(keys)
        torch.testing.assert_close(task.queue, torch.stack(given[-length:]))
        given += [*keys.double()]
    figures = task.close_epoch()
    assert figures == {"queue_filled": 1.0} and len(task.queue) == length


def test_a_new_queue_is_random_directions_and_says_so():
    start = Start()
    task = task_of(queue=200)
    task.begin(start)
    torch.testing.assert_close(task.ring.norm(dim=1), torch.ones(200 + BATCH).double())
    assert float(task.queue.mean(0).abs().max()) < 0.15
    assert "200 keys, momentum 0.9" in start.text
    task(batch_of())
    assert task.close_epoch() == {"queue_filled": BATCH / 200}


def test_keys_do_not_share_the_statistics_of_their_queries():
    """With both networks alike and both views alike, only the groups tell q and k apart."""
    task = task_of(group=2, head=(3,))
    task.keys.load_state_dict(task.embedder.state_dict())
    batch = batch_of()
    batch["views"][:, 1] = batch["views"][:, 0]
    assert float(task(batch)["similarity_positive"]) < 1 - 1e-6
    keys = []
    for step in (1, 2, 2):
        task.before_step(step)
        task(batch | {"step": step})
        keys.append(task.ring[int(task.written) - BATCH : int(task.written)].clone())
    torch.testing.assert_close(keys[1], keys[2])  # a function of the step
    assert float((keys[0] - keys[1]).abs().max()) > 1e-6, "the same groups in every step"
    task.keys.load_state_dict(task.embedder.state_dict())
    task = with_running_statistics(task)
    assert float(task(batch)["similarity_positive"]) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("images", "epochs", "queue", "momentum"),
    [
        (40_000, 100, 4096, 0.999),
        (8_000, 100, 2000, 0.999),
        (400, 6, 100, 1 - 20 / 300),
        (20, 1, 5, 0.0),
        (0, 1, 1, 0.0),
    ],
)
def test_queue_and_momentum_fit_the_training(images, epochs, queue, momentum):
    task = task_of(images=images, epochs=epochs, queue=0, momentum=0.0)
    assert task.length == queue
    assert task.momentum == pytest.approx(momentum)
    if images:
        task.check(torch.zeros(images))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"queue": 201}, "queue is 201; allowed: 1 to 200, half of the training images, or 0"),
        ({"momentum": 0.99}, r"momentum is 0.99; allowed: 0 to 0.93333 in 300 steps"),
    ],
)
def test_what_would_not_learn_is_refused_in_one_line(options, line):
    task = task_of(epochs=6, **{"queue": 200, "momentum": 0.93333, **options})
    with pytest.raises(ValueError, match=line) as error:
        task.check(torch.zeros(400))
    assert "\n" not in str(error.value)
    task_of(epochs=6, queue=200, momentum=0.93333).check(torch.zeros(400))


def test_the_encoder_that_the_next_stage_takes_is_the_query_networks():
    task = task_of().float()
    with thin.patch():
        plain = Network(head=(WIDTH,)).embedder()
    plain.load_state_dict(task.embedder.state_dict())
    images = torch.rand(3, 1, 32, 32)
    torch.testing.assert_close(task.eval().features(images)[1], plain.eval()(images)[1])
