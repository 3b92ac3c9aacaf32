"""What the ranks of test_ranks.py do: each stage's own code on a few images, in float64."""

import dataclasses
from contextlib import ExitStack
from pathlib import Path

import torch
from selftaught.training.finetune import FinetuneStage, initial_centers
from selftaught.training.pretext import PretextStage

from selftaught import distributed
from selftaught.training import stages
from selftaught.training.config import FinetuneConfig, PretextConfig
from selftaught.training.engine import make_engine
from selftaught.training.inputs import Embedded, embed
from selftaught.training.loop import train
from selftaught.training.progress import Reporter
from selftaught.training.stop import Stopper
from selftaught.training.tasks import FinetuneTask, PretextTask
from tests.thin import patches


def in_float64(kind, seen):
    """The stage with float64 views, which it also remembers, and without looks at plain views."""

    class Doubled(kind):
        def embed_plain(self, rows):
            return Embedded(torch.randn(4, 2), torch.randn(4, 2), rows)

        def observe_epoch(self, epoch, step):
            return {}

        def batches(self, first_step):
            for batch in super().batches(first_step):
                seen.append({name: value.clone() for name, value in batch.items()})
                yield {**batch, "views": batch["views"].double()}

    return Doubled


def learn(config, images, folder, name):
    """20 steps of a stage with Adam: what it saw, its losses and its weights."""
    seen: list = []
    embedder = stages.new_embedder(config, 5).double()
    options = {"pretext": config.pretext, "finetune": config.finetune}[name]
    if name == "pretext":
        task = PretextTask(embedder, temperature=0.5, method="supcon")
        kind, more = PretextStage, {}
    else:
        generator = torch.Generator().manual_seed(2)
        centers = torch.randn(6, 128, generator=generator, dtype=torch.float64)
        task = FinetuneTask(embedder, centers, eta=0.7, gamma=0.3)
        kind, more = FinetuneStage, {"best": folder / "best"}
    engine = make_engine(task, config.engine, optimizer="adam", weight_decay=1e-6)
    with Reporter(folder) as reporter:
        stage = in_float64(kind, seen)(
            config, options, name, images, task, reporter, Stopper(), **more
        )
        train(engine, stage, folder / "checkpoints" / name, reporter, Stopper(), config.engine)
        stage.close()
        losses = [
            line["loss"]
            for line in reporter.lines()
            if line["kind"] == "step" and line["stage"] == name
        ]
        closing = [line.get("centers") for line in reporter.lines() if line["kind"] == "epoch"]
    return {
        "seen": seen,
        "losses": losses,
        "centers": closing,
        "weights": {k: v.clone() for k, v in task.state_dict().items()},
    }


def shortened(config, accumulate):
    """20 steps: 4 epochs of 5, four images each."""
    return dataclasses.replace(
        config,
        pretext=PretextConfig(batch_size=8, epochs=10, milestones=[5], lr=1e-4),
        finetune=FinetuneConfig(batch_size=4, epochs=4, milestones=[2], lr=1e-4, centers=3),
        engine=dataclasses.replace(config.engine, accumulate=accumulate, clip=1.0),
    )


def everything(config, images, folder):
    """All that several ranks do, in one go, with a thin encoder."""
    with ExitStack() as thin:
        for patch in patches():
            thin.enter_context(patch)
        return _everything(config, images, folder)


def _everything(config, images, folder):
    torch.set_num_threads(1)
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    out = {
        "pretext": learn(shortened(config, 2), images, folder, "pretext"),
        "finetune": learn(shortened(config, 1), images, folder, "finetune"),
    }
    embedder = stages.new_embedder(config, 1)
    short = shortened(config, 1)
    out["drawn centers"] = initial_centers(short, images, embedder, None, Stopper())
    with stages.open_plain(images, config.finetune.augment) as pipeline:
        for count in (1, 7, 23):
            rows = images.rows("train")[:count] if count < 20 else range(23)
            out[f"embedded {count}"] = embed(
                embedder, pipeline, torch.as_tensor(rows).numpy(), batch_size=4, stopper=Stopper()
            )
    task = FinetuneTask(torch.nn.Identity(), torch.zeros(4, 2), eta=1.0, gamma=0.05)
    # By halves: alone neither rank would keep the centres that both keep together.
    counts = torch.tensor([[90, 3, 0, 0], [10, 3, 1, 4]])
    ranks = distributed.world_size()
    task.counts += counts[distributed.rank()] if ranks > 1 else counts.sum(0)
    out["occupancy"] = task.close_epoch()
    out["active"] = task.active
    return out
