"""What the ranks of test_ranks.py do: both stages on a few images, in float64."""

import dataclasses
from pathlib import Path

import torch

from selftaught import distributed, methods
from selftaught.models.network import Network
from selftaught.training.checkpoint import newest
from selftaught.training.inference import infer
from selftaught.training.inputs import open_plain
from selftaught.training.stage import train_stage
from selftaught.training.tasks import new_task
from tests import thin
from tests.training.toys import lines, run_of

FINETUNING = {"batch_size": 4, "epochs": 2, "milestones": [1], "lr": 1e-4}


def shortened(config, accumulate):
    """10 steps of each stage."""
    return dataclasses.replace(
        config,
        pretext=methods.options("supcon", batch_size=8, epochs=5, milestones=[3], lr=1e-4),
        finetune=methods.options("spheres", centers=6, gamma=0.3, **FINETUNING),
        engine=dataclasses.replace(
            config.engine, accumulate=accumulate, clip=1.0, precision="fp64"
        ),
    )


def learn(config, images, folder, role):
    """10 steps of a stage with Adam: what it was given, its losses and its weights."""
    seen = []

    def hear(event, **facts):
        if event == "step":
            kept = {k: v.clone() for k, v in facts["batch"].items() if torch.is_tensor(v)}
            seen.append(kept)

    with run_of(config, images, folder, hear) as run:
        train_stage(run, role)
    written = [line for line in lines(folder) if line["stage"] == role]
    return {
        "seen": seen,
        "losses": [line["loss"] for line in written if line["kind"] == "step"],
        "centers": [line.get("centers") for line in written if line["kind"] == "epoch"],
        "weights": newest(run.checkpoints(role))[0].weights,
    }


def everything(config, images, folder):
    """All that several ranks do, in one go, with a thin encoder."""
    torch.set_num_threads(1)
    folder = Path(folder)
    with thin.patch():
        return _everything(config, images, folder)


def _everything(config, images, folder):
    out = {
        "pretext": learn(shortened(config, 2), images, folder, "pretext"),
        "finetune": learn(shortened(config, 1), images, folder, "finetune"),
    }
    config = dataclasses.replace(config, score=dataclasses.replace(config.score, batch_size=4))
    task = new_task(config, images, "pretext")
    with (
        run_of(config, images, folder) as run,
        open_plain(images, config.finetune.augment) as pipeline,
    ):
        for count in (1, 7, 23):
            rows = torch.arange(count).numpy()
            z, read = infer(
                run, lambda x, _: {"z": task.features(x)[1]}, [task], pipeline, rows, name="some"
            )
            out[f"inferred {count}"] = z["z"], torch.from_numpy(read)
    spheres = methods.load("spheres")
    task = spheres(methods.options("spheres", centers=4, gamma=0.05), Network(head=(2,)))
    # By halves: alone neither rank would keep the centres that both keep together.
    counts = torch.tensor([[90, 3, 0, 0], [10, 3, 1, 4]])
    ranks = distributed.world_size()
    task.counts += counts[distributed.rank()] if ranks > 1 else counts.sum(0)
    out["occupancy"] = task.close_epoch()
    out["active"] = task.active
    return out
