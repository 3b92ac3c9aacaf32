"""What the stages train on, how long and how fast, and what a batch and the memory hold."""

import dataclasses
import re
import types
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from selftaught import methods
from selftaught.training import inputs
from selftaught.training.inputs import training_batches
from selftaught.training.schedule import Schedule
from selftaught.training.stage import TrainingStage, train_stage
from selftaught.training.tasks import finished_weights, new_task, total_steps
from tests.training.toys import run_of


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


def test_steps_follow_the_batch_and_the_training_set(config, images):
    assert total_steps(config, images, "pretext") == 100 * 1
    assert total_steps(config, images, "finetune") == 150 * 1
    none = dataclasses.replace(config, pretext=methods.options("none"))
    assert total_steps(none, images, "pretext") == 0


@pytest.mark.parametrize("count", [33, 34])
def test_untrained_weights_need_no_batch_of_two_at_the_end(config, images, tmp_path, count):
    config = dataclasses.replace(config, pretext=methods.options("none"))
    frame = images.frame.iloc[np.arange(count) % 20].reset_index(drop=True)
    more = dataclasses.replace(images, frame=frame)
    with run_of(config, more, tmp_path / "run") as run:
        train_stage(run, "pretext")
        weights = finished_weights(run, "pretext")
    steps = [value for name, value in weights.items() if name.endswith("num_batches_tracked")]
    assert {int(one) for one in steps} == {1 if count == 33 else 2}


@pytest.mark.parametrize(("batch_size", "held"), [(20, None), (21, 20), (64, 20)])
def test_a_batch_larger_than_the_set_is_said(config, images, tmp_path, batch_size, held):
    pretext = dataclasses.replace(config.pretext, batch_size=batch_size, epochs=1)
    config = dataclasses.replace(config, pretext=pretext)
    with run_of(config, images, tmp_path / "run") as run:
        train_stage(run, "pretext")
        warnings = [one["message"] for one in run.reporter.lines() if one["kind"] == "warning"]
    text = f"pretext.batch_size is {batch_size}, but 20 images train: each batch holds {held}"
    assert [one for one in warnings if "batch_size" in one] == ([text] if held else [])


@pytest.mark.parametrize(("method", "said"), [("ntxent", True), ("ae", True), ("moco", False)])
def test_micro_batches_that_change_the_loss_are_said(config, images, tmp_path, method, said):
    config = dataclasses.replace(
        config,
        pretext=methods.options(method, batch_size=8, epochs=1),
        engine=dataclasses.replace(config.engine, accumulate=2),
    )
    with run_of(config, images, tmp_path / "run") as run:
        train_stage(run, "pretext")
        warnings = [one["message"] for one in run.reporter.lines() if one["kind"] == "warning"]
    text = f"engine.accumulate is 2: method {method} has a loss over a whole batch"
    assert [one.startswith(text) for one in warnings if "accumulate" in one] == [True] * said


@pytest.fixture
def masked(images):
    """Half of the images have a mask: another image."""
    frame = images.frame.copy()
    frame["mask"] = ["001.png" if row % 2 else "" for row in range(len(frame))]
    return dataclasses.replace(images, frame=frame)


@pytest.mark.parametrize("masks", [False, True])
def test_a_batch_holds_masks_labels_epoch_and_step(masked, config, masks):
    augment, rows = config.finetune.augment, masked.training_rows("finetune")
    with masked.open("finetune", augment, 2, training=rows, masks=masks) as pipeline:
        batches = list(
            training_batches(
                masked,
                pipeline,
                rows,
                stage="finetune",
                batch_size=8,
                accumulate=1,
                first_step=1,
                steps=5,
                input_range=augment.input_range,
                device=torch.device("cpu"),
            )
        )
    # Two steps to an epoch; the first step is done.
    assert [(batch["step"], batch["epoch"]) for batch in batches] == [
        (1, 0),
        (2, 1),
        (3, 1),
        (4, 2),
    ]
    for batch in batches:
        assert batch["views"].shape == (8, 2, 1, 32, 32)
        assert torch.equal(batch["semi_label"], masked.semi_label[batch["ids"]])
        if not masks:
            assert batch["masks"] is None
            continue
        assert batch["masks"].shape == batch["views"].shape
        assert 0 <= batch["masks"].min() and batch["masks"].max() <= 1
        whole = batch["ids"] % 2 == 0
        assert batch["masks"][~whole].std() > 0


@pytest.fixture
def without_assertions():
    """training.inputs as `python -O` has it."""
    path = Path(inputs.__file__)
    module = types.ModuleType("optimised")
    exec(compile(path.read_text("utf-8"), path, "exec", optimize=1), module.__dict__)
    return module


@pytest.mark.parametrize(("value", "fine"), [(0.5, True), (255.0, False), (-0.5, False)])
def test_views_out_of_the_declared_range_are_refused_without_assertions_too(
    images, without_assertions, value, fine
):
    batch = types.SimpleNamespace(
        views=torch.full((2, 1, 1, 4, 4), value), masks=None, ids=torch.arange(2), problems=()
    )
    given = without_assertions.training_batches(
        images,
        types.SimpleNamespace(batches=lambda requests: iter([batch])),
        np.arange(2),
        stage="finetune",
        batch_size=2,
        accumulate=1,
        first_step=0,
        steps=1,
        input_range=(0.0, 1.0),
        device=torch.device("cpu"),
    )
    if fine:
        assert len(list(given)) == 1
    else:
        said = re.escape(f"views reach from {value} to {value}, declared: (0.0, 1.0)")
        with pytest.raises(RuntimeError, match=said):
            list(given)


@pytest.mark.parametrize(("views", "pipelines"), [("plain", 2), ("augmented", 3)])
@pytest.mark.parametrize("role", ["pretext", "finetune"])
def test_open_pipelines_share_the_memory(config, images, tmp_path, monkeypatch, views, pipelines,
                                         role):  # fmt: skip
    given, opened = inputs.open_pipeline, []

    def remembered(*arguments, **named):
        opened.append(named["cache_bytes"])
        return given(*arguments, **named)

    monkeypatch.setattr(inputs, "open_pipeline", remembered)
    data = dataclasses.replace(config.data, cache_gib=3.0, evaluation_views=views)
    config, images = (
        dataclasses.replace(config, data=data),
        dataclasses.replace(images, config=data),
    )
    with run_of(config, images, tmp_path / "run") as run:
        with closing(TrainingStage(run, role, new_task(config, images, role))) as stage:
            next(iter(stage.batches(0)))
            stage.observe_epoch(0, 1)
    assert len(opened) == (pipelines if role == "finetune" else 2)
    (budget,) = set(opened)
    assert budget.take(3 << 30) and not budget.take(1)
