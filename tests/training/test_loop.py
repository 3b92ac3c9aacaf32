"""The loop between steps: saves, owed epoch lines, non-finite numbers."""

import json

import pytest
import torch
from torch import nn

from selftaught.errors import MachineError
from selftaught.training import checkpoint
from selftaught.training.engine import TorchEngine
from selftaught.training.loop import Schedule, train
from selftaught.training.progress import Reporter
from selftaught.training.stop import Stopper, StopRun
from selftaught.training.tasks import Task


class Line(Task):
    """Fits one weight to its inputs."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0]))

    def forward(self, batch):
        return {"loss": ((self.weight * batch["views"]) ** 2).mean()}


class Steps:
    """Two epochs of three steps; `interrupt` is raised once while observing that epoch."""

    def __init__(self, interrupt=None, poison=None):
        self.schedule = Schedule(
            stage="pretext", epochs=2, steps_per_epoch=3, lr=0.1, milestones=(1,), save_every=100
        )
        self.interrupt, self.poison, self.closed = interrupt, poison, 0

    def batches(self, first_step):
        for step in range(first_step, self.schedule.steps):
            value = float("nan") if step == self.poison else 1.0 + step
            ids = torch.arange(2) + 2 * step
            yield {"views": torch.full((2, 1), value), "ids": ids}

    def close_epoch(self):
        self.closed += 1
        return {"centers": 7}

    def observe_epoch(self, epoch, step):
        if epoch == self.interrupt:
            self.interrupt = None
            raise StopRun(143)
        return {"spread": 1.0}

    def files(self, ids):
        return [f"image-{i}.png" for i in ids.tolist()]


def run(folder, stage):
    task = Line()
    engine = TorchEngine(task, weight_decay=0.0, precision="fp32")
    folder.mkdir(exist_ok=True)
    with Reporter(folder) as reporter:
        train(engine, stage, folder / "c", reporter, Stopper())
    return task.weight.item()


def epochs(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [e for e in lines if e["kind"] == "epoch"]


def test_a_signal_while_observing_saves_and_the_owed_line_is_written_on_resume(tmp_path):
    expected = run(tmp_path / "whole", Steps())
    place = tmp_path / "stopped"
    with pytest.raises(StopRun):
        run(place, Steps(interrupt=0))
    assert checkpoint.newest(place / "c")[0].step == 3
    assert epochs(place) == []
    assert run(place, Steps()) == expected
    for ours, theirs in zip(epochs(place), epochs(tmp_path / "whole"), strict=True):
        for name in ("epoch", "step", "loss", "lr", "centers", "spread"):
            assert ours[name] == theirs[name]


def test_a_number_that_is_none_stops_before_the_update_and_names_the_files(tmp_path):
    with pytest.raises(MachineError, match=r"step 4.*rank 0: loss nan.*image-8.png, image-9.png"):
        run(tmp_path, Steps(poison=4))


def test_a_finished_stage_does_nothing_more(tmp_path):
    expected = run(tmp_path, Steps())
    before = (tmp_path / "metrics.jsonl").read_text()
    again = Steps()
    assert run(tmp_path, again) == expected
    assert again.closed == 0
    assert (tmp_path / "metrics.jsonl").read_text() == before
