"""What the stages train on, prune and start from."""

import dataclasses

import numpy as np
import pytest
import torch
from selftaught.training.finetune import initial_centers
from selftaught.training.stages import new_embedder, total_steps

from selftaught.training import pretext
from selftaught.training.loop import Schedule
from selftaught.training.stop import Stopper
from selftaught.training.tasks import FinetuneTask


def test_blank_labels_may_serve_the_pretext_alone(images):
    frame = images.frame.copy()
    frame["label"] = frame["label"].astype("Int8")
    frame.loc[[1, 2], "label"] = None
    both = dataclasses.replace(images, frame=frame)
    apart = dataclasses.replace(both, unlabelled="pretext")
    assert len(both.training_rows("finetune")) == 20
    assert len(apart.training_rows("pretext")) == 20
    assert sorted(set(range(20)) - set(apart.training_rows("finetune").tolist())) == [1, 2]


def test_rate_falls_tenfold_at_each_milestone_epoch():
    plan = Schedule(stage="x", epochs=4, steps_per_epoch=3, lr=1.0, milestones=(1, 3))
    rates = [round(plan.rate(step), 9) for step in range(12)]
    assert rates == [1.0] * 3 + [0.1] * 6 + [0.01] * 3
    assert [plan.epoch(step) for step in (1, 3, 4, 12)] == [0, 0, 1, 3]


def task_with(counts, gamma=0.05):
    embedder = torch.nn.Identity()
    task = FinetuneTask(embedder, torch.randn(len(counts), 4), eta=1.0, gamma=gamma)
    task.counts += torch.tensor(counts)
    return task


def test_pruning_keeps_centers_with_gamma_times_the_largest_count():
    task = task_with([100, 5, 4, 0])
    figures = task.close_epoch()
    assert task.active.tolist() == [True, True, False, False]
    assert figures["centers"] == 2
    assert task.counts.tolist() == [0, 0, 0, 0]
    task.counts += torch.tensor([1, 90, 90, 90])
    task.close_epoch()
    assert task.active.tolist() == [False, True, False, False], "removed centres stay removed"


def test_an_epoch_without_counted_images_prunes_nothing():
    task = task_with([0, 0, 0])
    task.close_epoch()
    assert task.active.all()


def test_known_abnormal_images_are_not_counted(config, images):
    task = FinetuneTask(new_embedder(config, 1), torch.randn(3, 128), eta=1.0, gamma=0.05)
    views = torch.rand(4, 1, 1, 32, 32)
    task.train()
    task({"views": views, "semi_label": torch.tensor([-1, 0, 1, -1])})
    assert int(task.counts.sum()) == 2
    task.eval()
    task({"views": views, "semi_label": torch.tensor([0, 0, 0, 0])})
    assert int(task.counts.sum()) == 2


def test_centers_keep_away_from_zero_but_for_exact_zeros(config, images):
    options = dataclasses.replace(config.finetune, centers=3, center_epsilon=0.1)
    config = dataclasses.replace(config, finetune=options)
    centers = initial_centers(config, images, new_embedder(config, 1), None, Stopper())
    assert centers.shape == (3, 128)
    assert ((centers.abs() >= 0.1 - 1e-7) | (centers == 0)).all()
    assert (centers.abs() == 0.1).any(), "the random head gives coordinates near zero"


def test_steps_follow_the_batch_and_the_training_set(config, images):
    assert total_steps(config.pretext, "pretext", images, 1) == 100 * 1
    assert total_steps(config.finetune, "finetune", images, 1) == 150 * 1
    none = dataclasses.replace(config.pretext, method="none")
    assert total_steps(none, "pretext", images, 1) == 0


@pytest.mark.parametrize("count", [33, 34])
def test_untrained_weights_need_no_batch_of_two_at_the_end(config, images, count):
    config = dataclasses.replace(config, pretext=dataclasses.replace(config.pretext, method="none"))
    frame = images.frame.iloc[np.arange(count) % 20].reset_index(drop=True)
    more = dataclasses.replace(images, frame=frame)
    weights = pretext._untrained(config, more, torch.device("cpu")).weights
    steps = [value for name, value in weights.items() if name.endswith("num_batches_tracked")]
    assert {int(one) for one in steps} == {1 if count == 33 else 2}
