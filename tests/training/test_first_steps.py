"""The first optimizer steps of both stages repeat plain PyTorch (tests/training/plain.py).

In float64, where Adam's sign-like first steps do not turn a rounding difference into a full step.
"""

import dataclasses

import pytest
import torch

from selftaught import methods
from selftaught.models.network import Network
from selftaught.training.stage import TrainingStage
from tests.training.toys import Given, learn, lines, run_of

from . import plain

STEPS = 5


def plain_network(embedder):
    """The plain network with the embedder's weights: same order of parameters and buffers."""
    network = plain.Network().double()
    ours = list(embedder.state_dict().values())
    own = network.state_dict()
    assert [v.shape for v in ours] == [v.shape for v in own.values()]
    network.load_state_dict(dict(zip(own, (v.clone() for v in ours), strict=True)))
    return network.train()


def task_of(options):
    return methods.load(options.method)(options, Network(seed=5)).double()


def draw_batches(config, images, folder, role, task):
    """The toolkit's own batches, as tensors."""
    with run_of(config, images, folder) as run:
        stage = TrainingStage(run, role, task)
        batches = [batch for batch, _ in zip(stage.batches(0), range(STEPS), strict=False)]
        stage.close()
    assert len(batches) == STEPS
    for step, batch in enumerate(batches):
        assert (batch["epoch"], batch["step"], batch["masks"]) == (0, step, None)
        assert batch["views"].shape[1] == task.views
    return [
        {name: batch[name] for name in ("semi_label", "ids")} | {"views": batch["views"].double()}
        for batch in batches
    ]


def assert_repeats(folder, task, batches, network, expected):
    stage = Given(lambda step: dict(batches[step]), STEPS, lr=1e-4)
    learn(folder / "learnt", task, stage, optimizer="adam", weight_decay=1e-6, precision="fp64")
    found = [line["loss"] for line in lines(folder / "learnt", "step")]
    assert found == pytest.approx(expected, rel=1e-9)
    for ours, theirs in zip(
        [*task.embedder.parameters(), *task.embedder.buffers()],
        [*network.parameters(), *network.buffers()],
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_pretext_stage_repeats_plain_pytorch(config, images, tmp_path):
    options = methods.options("ntxent", batch_size=4, epochs=1, milestones=[], temperature=0.5)
    config, task = dataclasses.replace(config, pretext=options), task_of(options)
    batches = draw_batches(config, images, tmp_path, "pretext", task)
    network = plain_network(task.embedder)
    expected = plain.pretext_steps(
        network, [b["views"] for b in batches], lr=1e-4, weight_decay=1e-6, temperature=0.5
    )
    assert_repeats(tmp_path, task, batches, network, expected)


def test_finetuning_stage_repeats_plain_pytorch(config, images, tmp_path):
    options = methods.options("spheres", batch_size=4, epochs=1, milestones=[], eta=0.7, centers=6)
    config, task = dataclasses.replace(config, finetune=options), task_of(options)
    centers = torch.randn(6, 128, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    task.centers.copy_(centers)
    batches = draw_batches(config, images, tmp_path, "finetune", task)
    assert {-1, 0, 1} <= set(torch.cat([b["semi_label"] for b in batches]).tolist())
    network = plain_network(task.embedder)
    expected = plain.finetune_steps(
        network,
        centers,
        [(b["views"], b["semi_label"]) for b in batches],
        lr=1e-4,
        weight_decay=1e-6,
        eta=0.7,
    )
    assert_repeats(tmp_path, task, batches, network, expected)
