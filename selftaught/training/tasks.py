"""From settings and checkpoints to the tasks of a run's stages. Knows no method."""

from collections.abc import Iterable

import torch
from torch import Tensor

from selftaught import methods
from selftaught.data.plan import steps_per_epoch
from selftaught.errors import InputError
from selftaught.methods import Task
from selftaught.models.encoder import identified
from selftaught.models.network import Network
from selftaught.semi_labels import KNOWN_ABNORMAL
from selftaught.training import checkpoint
from selftaught.training.config import STAGES, Config
from selftaught.training.context import Run
from selftaught.training.contract import check_scorer
from selftaught.training.inputs import Images, global_batch_size

# A later stage draws fresh weights from a seed of its own: its head must not repeat the first.
SEEDS_APART = 1_000_003


def new_task(config: Config, images: Images, role: str) -> Task:
    """The task of a stage with fresh weights, on the CPU."""
    options = getattr(config, role)
    network = Network(
        encoder=identified(config.model.encoder),
        head=tuple(config.model.head),
        image_size=config.data.image_size,
        images=len(images.training_rows(role)),
        seed=config.seed + SEEDS_APART * list(STAGES).index(role),
        weights=config.model.weights,
        strata=images.strata(role, options.strata)[0],
    )
    task = methods.load(options.method)(options, network)
    return task.double() if config.engine.precision == "fp64" else task


def place(task: Task, device: torch.device) -> Task:
    """Move a task to its device, in the memory format that is fastest there."""
    # On a CPU channels-last took 11.2 ms a 64 px view in fp32 where the default took 7.1 ms.
    if device.type == "cpu":
        return task.to(device)
    return task.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def total_steps(config: Config, images: Images, role: str) -> int:
    """Optimizer steps of a whole stage; 0 where its method trains nothing.

    Raises:
        InputError: the batch size does not fit the training images and ranks.
    """
    options, parts = getattr(config, role), config.engine.accumulate
    if options.epochs == 0:
        return 0
    rows = len(images.training_rows(role))
    size = global_batch_size(f"{role}.batch_size", options.batch_size, rows, parts)
    return int(options.epochs * steps_per_epoch(rows, size, drop_last=True))


def check_settings(config: Config, images: Images, roles: Iterable[str] = STAGES) -> None:
    """Refuse what stages cannot begin with, before anything is written.

    Args:
        config: settings of the run.
        images: the split.
        roles: the stages that have not begun.

    Raises:
        InputError: names the option.
    """
    for role in roles:
        task = new_task(config, images, role)
        if role == list(STAGES)[-1] and type(task).scorer is Task.scorer:
            raise InputError(
                f"{role}.method is {task.options.method!r}, which cannot score; allowed: a method "
                "with a scorer"
            )
        labels = images.semi_label[images.training_rows(role)]
        known = int((labels == KNOWN_ABNORMAL).sum())
        if role == list(STAGES)[-1]:
            _check_score(config, task, labels)
        if task.known_share and not 0 < known < len(labels):
            raise InputError(
                f"{role}.method {task.options.method!r} draws known abnormal images into each "
                f"batch; of {len(labels)} training images {known} are, allowed: some, not all"
            )
        try:
            task.check(labels)
        except ValueError as error:
            text = str(error)
            raise InputError(text if "model." in text.split()[0] else f"{role}.{text}") from error
        images.check_strata(role, task.options.strata)
        if task.rates() and config.engine.kind == "deepspeed":
            raise InputError(
                "engine.kind is 'deepspeed', which moves all parameters at one rate, but those of "
                f"{role}.method {task.options.method!r} move at several here; allowed: ddp"
            )
        total_steps(config, images, role)


def _check_score(config: Config, task: Task, labels: Tensor) -> None:
    """Refuse a score that compares with training images where none or no features can be had."""
    by, method = config.score.by, task.options.method
    if by == "model":
        return
    kind = next(task.parameters(), torch.empty(0)).dtype
    if "h" not in check_scorer(task, torch.device("cpu"), kind):
        raise InputError(
            f"score.by is {by!r}, but method {method!r} has no features to compare; allowed: "
            "model, or a finetune.method whose scorer gives h"
        )
    if not (labels != KNOWN_ABNORMAL).any():
        raise InputError(
            f"score.by is {by!r}, but all {len(labels)} training images are known to be abnormal; "
            "allowed: model, or some others to compare with"
        )


def trained_task(run: Run, role: str, *, best: bool = False) -> Task:
    """The task that a stage left, at its last or at the best validated epoch, in eval mode.

    Raises:
        InputError: the stage is not finished, or what it kept as the best is damaged.
    """
    if best:
        weights = checkpoint.read_best(run.checkpoints("best"))
    else:
        weights = finished_weights(run, role)
    task = new_task(run.config, run.images, role)
    task.load_state_dict(weights)
    return place(task, run.device).eval()


def finished_weights(run: Run, role: str) -> dict[str, Tensor]:
    """The state that a finished stage left: its averaged weights, where it has such.

    A later stage begins with them, and they score.

    Raises:
        InputError: it is not finished.
    """
    latest, _ = checkpoint.newest(run.checkpoints(role))
    if latest is None or latest.step < total_steps(run.config, run.images, role):
        doing, command = {
            "pretext": ("pre-training", "pretrain"),
            "finetune": ("fine-tuning", "finetune"),
        }[role]
        raise InputError(f"{run.folder}: {doing} is not finished; run `selftaught {command}` first")
    return latest.weights | latest.average
