"""What the ranks of test_engines.py do: train a small net with batch norm, some way or other."""

import dataclasses

import torch
from torch import nn

from selftaught import distributed
from selftaught.losses import ntxent_loss
from selftaught.training.config import EngineConfig
from selftaught.training.stage import make_engine
from tests.training.toys import Toy

STEPS, ROWS = 12, 16


class Small(Toy):
    """Convolution, batch norm with and without parameters, a global contrastive loss."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedder = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 6, 3),
            nn.BatchNorm2d(6, affine=False),
            nn.Flatten(),
            nn.Linear(6 * 16, 5),
        )
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    def forward(self, batch, player="all"):
        z1, z2 = (self.embedder(batch["views"][:, i]) for i in range(2))
        contrast = ntxent_loss(z1, z2, 0.5, group=distributed.world_group())
        return {"loss": contrast + 0.1 * (z1**2).mean()}


def whole(step):
    """The global batch of a step."""
    generator = torch.Generator().manual_seed(100 + step)
    return {"views": torch.randn(ROWS, 2, 1, 8, 8, generator=generator)}


def shares(step, accumulate):
    """This rank's micro-batches of a step: its slice of each global micro-batch."""
    ranks, rank = distributed.world_size(), distributed.rank()
    return [{"views": p.chunk(ranks)[rank]} for p in whole(step)["views"].chunk(accumulate)]


def build(optimizer, config):
    task = Small().double() if config.precision == "fp64" else Small()
    return make_engine(task, config, optimizer=optimizer, weight_decay=1e-3)


def advance(engine, steps, accumulate, lr):
    """Losses, averaged over ranks, and gradient norms of `steps`."""
    losses, norms = [], []
    dtype = next(engine.task.parameters()).dtype
    for step in steps:
        total = torch.zeros((), dtype=dtype)
        parts = [{"views": part["views"].to(dtype)} for part in shares(step, accumulate)]
        for number, part in enumerate(parts):
            with engine.accumulate(last=number == len(parts) - 1):
                loss = engine.forward(part)["loss"]
                engine.backward(loss, len(parts))
            total += loss.detach() / len(parts)
        norms.append(float(engine.gradient_norm()))
        engine.step(lr)
        losses.append(float(distributed.sum_over_ranks(total)) / distributed.world_size())
    return losses, norms


def weights(engine):
    engine.sync_buffers()
    return {name: value.clone() for name, value in engine.task.state_dict().items()}


def train(config, optimizer="sgd", lr=0.05, steps=STEPS):
    engine = build(optimizer, config)
    losses, norms = advance(engine, range(steps), config.accumulate, lr)
    own = engine.task.embedder[1].running_mean.clone()
    out = {"weights": weights(engine), "losses": losses, "norms": norms, "state": engine.state()}
    return out | {"mean before buffers are shared": own}


def resume(config, optimizer, lr, start, first):
    """Goes on from another run's weights and state."""
    engine = build(optimizer, config)
    engine.task.load_state_dict(start["weights"])
    engine.load_state(start["state"])
    advance(engine, range(first, STEPS), config.accumulate, lr)
    return {"weights": weights(engine), "state": engine.state()}


def halves(config, optimizer, lr, first):
    """Half of the steps, and the rest by a fresh engine from what the first one gave."""
    half = train(config, optimizer, lr, first)
    return {**resume(config, optimizer, lr, half, first), "half": half}


def several(cases):
    """Every case in turn: name -> (function, its arguments)."""
    torch.set_num_threads(1)
    return {name: function(*arguments) for name, (function, arguments) in cases.items()}


def base(**changes):
    return dataclasses.replace(EngineConfig(precision="fp32", accumulate=2, clip=0.5), **changes)
