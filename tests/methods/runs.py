"""Runs of single stages that are small enough to be done for every method."""

import dataclasses
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from selftaught import distributed, methods
from selftaught.models.network import Network
from selftaught.training.checkpoint import newest
from selftaught.training.config import Config, DataConfig, EngineConfig, ModelConfig, ScoreConfig
from selftaught.training.context import FINETUNE, PRETEXT, Run
from selftaught.training.events import ignore
from selftaught.training.inputs import Images
from selftaught.training.progress import Reporter
from selftaught.training.stage import train_stage
from selftaught.training.stop import Stopper
from tests import thin
from tests.tiny import write_images

SIZE, IMAGES = 32, 24
# What a method needs to be run on two dozen images.
SMALL = {
    "epochs": 2,
    "batch_size": 8,
    "centers": 3,
    "milestones": [],
    "lr": 1e-4,
    "warmup_epochs": 0,
    "search_steps": 2,
    # Of the GAN, whose generator then has a turn in two steps.
    "width": 8,
    "generator_every": 2,
}


def small_options(name, **more):
    """Options of a method, cut down where it has them."""
    known = {field.name for field in dataclasses.fields(methods.load(name).Options)}
    return methods.options(name, **{k: v for k, v in {**SMALL, **more}.items() if k in known})


def scores(name):
    """Whether a method can score, so that it can be a run's second stage."""
    return methods.load(name).scorer is not methods.Task.scorer


def stages(name, **more):
    """Options of both stages where one is `name`."""
    if scores(name):
        return {PRETEXT: small_options("none"), FINETUNE: small_options(name, **more)}
    return {PRETEXT: small_options(name, **more), FINETUNE: methods.options(methods.FINETUNE)}


def split_table():
    """20 training images, a fifth known to be abnormal, and 4 for validation."""
    semi = np.where(np.arange(IMAGES) % 5 == 0, -1, (np.arange(IMAGES) % 5 == 1).astype(int))
    return pd.DataFrame(
        {
            "path": [f"{i:03d}.png" for i in range(IMAGES)],
            "split": ["train"] * 20 + ["val"] * 4,
            "label": np.where(semi == -1, 1, np.arange(IMAGES) % 2 * (semi == 0)),
            "semi_label": semi,
            "mask": "",
            "body_part": (["wrist", "", "elbow", "hand"] * IMAGES)[:IMAGES],
        }
    )


@contextmanager
def opened(
    root,
    folder,
    name,
    *,
    frame=None,
    on_event=None,
    precision="fp32",
    data=None,
    save_every=0,
    **more,
):
    """A run of a method on the images in `root`, whose stages have not begun."""
    data = DataConfig(image_size=SIZE, workers=0, **data or {})
    config = Config(
        out=str(folder),
        seed=3,
        data=data,
        model=ModelConfig(weights=str(root / "weights.pt")),
        score=ScoreConfig(batch_size=8),
        engine=EngineConfig(precision=precision, save_every=save_every),
        **stages(name, **more),
    )
    folder.mkdir(parents=True, exist_ok=True)
    images = Images(frame=split_table() if frame is None else frame, root=root, config=data, seed=3)
    with Reporter(folder, on_event or ignore) as reporter:
        yield Run(
            config=config,
            folder=folder,
            images=images,
            device=distributed.start(),
            reporter=reporter,
            stopper=Stopper(),
        )


class HostReads(TorchDispatchMode):
    """What training steps read on the host, for which they would wait on a GPU."""

    OPS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2")

    def __init__(self):
        super().__init__()
        self.seen = set()

    def hear(self, event, *, engine=None, **facts):
        """Look at what the engine of a stage does from its first step on."""
        if event == "step" and "forward" not in vars(engine):
            for owner, names in (
                (engine, "forward backward gradient_norm"),
                (engine.task, "before_step"),
            ):
                for name in names.split():
                    setattr(owner, name, self.watched(getattr(owner, name)))

    def watched(self, function):
        def call(*given, **named):
            with self:
                return function(*given, **named)

        return call

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            place is not None and place.dtype == torch.bool for place in args[1]
        )
        if name in self.OPS or by_mask:
            self.seen.add(name)
        return function(*args, **(kwargs or {}))


def train(root, folder, name, **more):
    """The checkpoint that the stage of a method leaves, trained on the images in `root`."""
    with opened(root, folder, name, **more) as run:
        for role in (PRETEXT, FINETUNE) if scores(name) else (PRETEXT,):
            train_stage(run, role)
        return newest(run.checkpoints(role))[0]


def write(folder):
    """The images of `split_table`, and weights for methods that start from some."""
    write_images(folder, IMAGES)
    with thin.patch():
        weights = Network(seed=9).embedder().encoder.layers.state_dict()
    torch.save(weights, folder / "weights.pt")
    return folder
