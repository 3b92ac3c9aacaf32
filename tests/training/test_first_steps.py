"""The first optimizer steps of both stages repeat plain PyTorch (tests/training/plain.py).

In float64, where Adam's sign-like first steps do not turn a rounding difference into a full step.
"""

import dataclasses
import json

import pytest
import torch
from selftaught.training.pretext import PretextStage

from selftaught.training import stages
from selftaught.training.config import FinetuneConfig, PretextConfig
from selftaught.training.engine import TorchEngine
from selftaught.training.loop import Schedule, train
from selftaught.training.progress import Reporter
from selftaught.training.stop import Stopper
from selftaught.training.tasks import FinetuneTask, PretextTask

from . import plain

STEPS = 5


class Recorded:
    """A stage that feeds fixed batches and does nothing between epochs."""

    def __init__(self, name, batches, lr):
        self.schedule = Schedule(
            stage=name, epochs=1, steps_per_epoch=len(batches), lr=lr, milestones=()
        )
        self._batches = batches

    def batches(self, first_step):
        return iter(self._batches[first_step:])

    def close_epoch(self):
        return {}

    def observe_epoch(self, epoch, step):
        return {}

    def files(self, ids):
        return [str(i) for i in ids.tolist()]


def plain_network(embedder):
    """The plain network with the embedder's weights: same order of parameters and buffers."""
    network = plain.Network().double()
    ours = list(embedder.state_dict().values())
    own = network.state_dict()
    assert [v.shape for v in ours] == [v.shape for v in own.values()]
    network.load_state_dict(dict(zip(own, (v.clone() for v in ours), strict=True)))
    return network.train()


def losses_of(run, stage):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [e["loss"] for e in lines if e["kind"] == "step" and e["stage"] == stage]


def draw_batches(config, images, name, options, views):
    """The toolkit's own batches, as tensors."""
    task = PretextTask(stages.new_embedder(config, 0), temperature=1.0, method="ntxent")
    with Reporter(images.root) as reporter:
        stage = PretextStage(config, options, name, images, task, reporter, Stopper())
        batches = [batch for batch, _ in zip(stage.batches(0), range(STEPS), strict=False)]
        stage.close()
    for batch in batches:
        batch["views"] = batch["views"].double()
    assert len(batches) == STEPS
    assert batches[0]["views"].shape[1] == views
    return batches


def train_recorded(task, name, batches, options, run):
    run.mkdir(parents=True)
    engine = TorchEngine(task, weight_decay=options.weight_decay, precision="fp32")
    with Reporter(run) as reporter:
        stage = Recorded(name, batches, options.lr)
        train(engine, stage, run / "checkpoints", reporter, Stopper())
    return losses_of(run, name)


def assert_same(found, expected, embedder, network):
    assert found == pytest.approx(expected, rel=1e-9)
    for ours, theirs in zip(
        [*embedder.parameters(), *embedder.buffers()],
        [*network.parameters(), *network.buffers()],
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_pretext_stage_repeats_plain_pytorch(config, images, tmp_path):
    options = PretextConfig(batch_size=4, epochs=1, milestones=[], lr=1e-4)
    config = dataclasses.replace(config, pretext=options)
    batches = draw_batches(config, images, "pretext", options, views=2)
    embedder = stages.new_embedder(config, 5).double()
    task = PretextTask(embedder, temperature=0.5, method="ntxent")
    network = plain_network(task.embedder)
    expected = plain.pretext_steps(
        network, [b["views"] for b in batches], lr=1e-4, weight_decay=1e-6, temperature=0.5
    )
    found = train_recorded(task, "pretext", batches, options, tmp_path / "run")
    assert_same(found, expected, embedder, network)


def test_finetuning_stage_repeats_plain_pytorch(config, images, tmp_path):
    options = FinetuneConfig(batch_size=4, epochs=1, milestones=[], lr=1e-4, eta=0.7)
    config = dataclasses.replace(config, finetune=options)
    batches = draw_batches(config, images, "finetune", options, views=1)
    assert {-1, 0, 1} <= set(torch.cat([b["semi_label"] for b in batches]).tolist())
    embedder = stages.new_embedder(config, 5).double()
    network = plain_network(embedder)
    centers = torch.randn(6, 128, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    task = FinetuneTask(embedder, centers, eta=0.7, gamma=0.05)
    expected = plain.finetune_steps(
        network,
        centers,
        [(b["views"], b["semi_label"]) for b in batches],
        lr=1e-4,
        weight_decay=1e-6,
        eta=0.7,
    )
    found = train_recorded(task, "finetune", batches, options, tmp_path / "run")
    assert_same(found, expected, embedder, network)
