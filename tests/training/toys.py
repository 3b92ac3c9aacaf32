"""Tasks and stages small enough to follow by hand, and a loop around them."""

import contextlib
import json

import torch
from torch import nn

from selftaught import distributed
from selftaught.methods import Options, Task
from selftaught.models.network import Network
from selftaught.training import optim
from selftaught.training.config import EngineConfig
from selftaught.training.context import Run
from selftaught.training.events import ignore
from selftaught.training.loop import train
from selftaught.training.progress import Reporter
from selftaught.training.schedule import Schedule
from selftaught.training.stage import make_engine
from selftaught.training.stop import Stopper


class Toy(Task):
    """A task without options or a network of the library's."""

    def __init__(self):
        super().__init__(Options(), Network())


class Line(Toy):
    """Fits one weight to its inputs."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0]))
        self.closed = 0

    def forward(self, batch, player="all"):
        return {"loss": ((self.weight * batch["views"]) ** 2).mean()}

    def close_epoch(self):
        self.closed += 1
        return {"centers": 7}


class Pair(Toy):
    """Two players as of a GAN: a critic tells numbers from made ones, a maker makes them."""

    players = ("critic", "maker")

    def __init__(self, options=None, network=None):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.maker, self.critic = nn.Linear(3, 4), nn.Linear(4, 1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, batch, player="all"):
        made = self.maker(batch["views"][:, :3])
        if player == "maker":
            return {"loss": nn.functional.softplus(-self.critic(made)).mean()}
        real = nn.functional.softplus(-self.critic(batch["views"][:, 3:])).mean()
        return {"loss": real + nn.functional.softplus(self.critic(made.detach())).mean()}

    def parameters_of(self, player):
        return {"critic": self.critic, "maker": self.maker}[player].parameters()


class Given:
    """A stage that is given its batches, and looks at nothing between epochs.

    Args:
        batch: step -> a global batch, of which each rank gets its share.
        steps: of an epoch.
        plan: of the schedule.
    """

    def __init__(self, batch, steps, **plan):
        given = {"stage": "pretext", "epochs": 1, "lr": 0.1, "milestones": ()} | plan
        self.batch, self.schedule = batch, Schedule(steps_per_epoch=steps, **given)
        self.pending = False

    def batches(self, first_step):
        ranks, rank = distributed.world_size(), distributed.rank()
        for step in range(first_step, self.schedule.steps):
            batch = self.batch(step)
            batch.setdefault("ids", torch.arange(len(batch["views"])))
            yield {name: value.chunk(ranks)[rank] for name, value in batch.items()}

    def observe_epoch(self, epoch, step):
        return {}

    def renew(self, *, scoring=False):
        pass

    def share(self):
        raise AssertionError("nothing was skipped")

    def files(self, ids):
        return [f"image-{i}.png" for i in ids.tolist()]


def learn(folder, task, stage, *, optimizer="sgd", weight_decay=0.0, on_event=ignore, **options):
    """Train a task, from the newest checkpoint in `folder` on; the task it became."""
    folder.mkdir(exist_ok=True)
    config = EngineConfig(**{"precision": "fp32", **options})
    engine = make_engine(task, config, optimizer=optimizer, weight_decay=weight_decay)
    with Reporter(folder, on_event) as reporter:
        train(engine, stage, folder / "c", reporter, Stopper(), config)
    return task


def fuse(monkeypatch):
    """Optimizers are those of a GPU, which torch has for the CPU too."""
    make = optim.make_optimizer
    fused = lambda *given, **named: make(*given, **named | {"fused": True})  # noqa: E731
    monkeypatch.setattr(optim, "make_optimizer", fused)


def lines(folder, kind=None):
    """What metrics.jsonl holds, of one kind or all."""
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in entries if kind in (None, line["kind"])]


@contextlib.contextmanager
def run_of(config, images, folder, on_event=ignore):
    """What travels through a run in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with Reporter(folder, on_event) as reporter:
        yield Run(
            config=config,
            folder=folder,
            images=images,
            device=torch.device("cpu"),
            reporter=reporter,
            stopper=Stopper(),
        )
