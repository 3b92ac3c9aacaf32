"""What a method must give, looked at before its first step, and scores that are numbers."""

import torch
from torch import Tensor, nn

from selftaught.errors import InputError, MachineError
from selftaught.methods import Task
from selftaught.methods.task import score_images
from selftaught.training.context import Run
from selftaught.training.inputs import Rows


def check_trained(task: Task) -> None:
    """Refuse a task that has nothing to train.

    Raises:
        InputError: a player has no parameter with a gradient.
    """
    for player in task.players:
        if not any(parameter.requires_grad for parameter in task.parameters_of(player)):
            raise InputError(
                f"method {task.options.method}: player {player!r} has no parameter with "
                "requires_grad; allowed: at least one"
            )


@torch.no_grad()
def check_scorer(
    task: Task, device: torch.device, kind: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """What the scorer makes of two blank images.

    Raises:
        InputError: there is none, or its outputs are not as `Task.scorer` says.
    """
    scorer, size = task.scorer(), task.network.image_size
    if not isinstance(scorer, nn.Module):
        raise InputError(
            f"method {task.options.method}: scorer gave {scorer}; allowed: an nn.Module"
        )
    modes = [(module, module.training) for one in (task, scorer) for module in one.modules()]
    scorer.eval()
    blank = torch.zeros(2, 1, size, size, device=device, dtype=kind)
    made = score_images(scorer, blank, torch.ones_like(blank) if task.masks else None)
    for module, mode in modes:
        module.training = mode
    return made


def check_finite(run: Run, scores: Tensor, rows: Rows) -> None:
    """Refuse scores that are no numbers.

    Raises:
        MachineError: names the first image.
    """
    bad = torch.nonzero(~torch.isfinite(scores)).flatten()
    if len(bad):
        path = run.images.frame["path"].iloc[rows[int(bad[0])]]
        raise MachineError(
            f"score: {len(bad)} of {len(scores)} scores are not finite, the first is "
            f"{float(scores[bad[0]])} of {path}; method {run.config.finetune.method}"
        )
