"""The first optimizer steps of both stages repeat plain PyTorch (tests/training/plain.py)."""

import dataclasses
import json

import pytest
import torch

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
    network = plain.Network()
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
    embedder = stages.new_embedder(config, 0)
    task = PretextTask(embedder, temperature=1.0, method="ntxent")
    with_views = {"pretext": stages.PretextStage}.get(name, stages.PretextStage)
    stage = with_views(config, options, name, images, task, None, Stopper())
    batches = [batch for batch, _ in zip(stage.batches(0), range(STEPS), strict=False)]
    stage.close()
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


def assert_same_weights(embedder, network, lr):
    for ours, theirs in zip(embedder.parameters(), network.parameters(), strict=True):
        # Adam's first steps are sign-like: a rounding difference moves a weight by up to lr.
        close = (ours - theirs).abs() <= 1e-5 + 1e-3 * theirs.abs()
        assert close.float().mean() > 0.99
        assert float((ours - theirs).abs().max()) <= 2.5 * lr * STEPS


def test_pretext_stage_repeats_plain_pytorch(config, images, tmp_path):
    options = PretextConfig(batch_size=4, epochs=1, milestones=[], lr=1e-4)
    config = dataclasses.replace(config, pretext=options)
    batches = draw_batches(config, images, "pretext", options, views=2)
    task = PretextTask(stages.new_embedder(config, 5), temperature=0.5, method="ntxent")
    network = plain_network(task.embedder)
    expected = plain.pretext_steps(
        network, [b["views"] for b in batches], lr=1e-4, weight_decay=1e-6, temperature=0.5
    )
    found = train_recorded(task, "pretext", batches, options, tmp_path / "run")
    assert found == pytest.approx(expected, rel=2e-4)
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert_same_weights(task.embedder, network, 1e-4)


def test_finetuning_stage_repeats_plain_pytorch(config, images, tmp_path):
    options = FinetuneConfig(batch_size=4, epochs=1, milestones=[], lr=1e-4, eta=0.7)
    config = dataclasses.replace(config, finetune=options)
    batches = draw_batches(config, images, "finetune", options, views=1)
    assert {-1, 0, 1} <= set(torch.cat([b["semi_label"] for b in batches]).tolist())
    embedder = stages.new_embedder(config, 5)
    network = plain_network(embedder)
    centers = torch.randn(6, 128, generator=torch.Generator().manual_seed(2))
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
    assert found == pytest.approx(expected, rel=2e-4)
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert_same_weights(task.embedder, network, 1e-4)
