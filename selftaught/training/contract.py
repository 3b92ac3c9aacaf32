"""What a method must give: a scorer, checked before the first step, and in each step a loss."""

from typing import Any

import torch
from torch import Tensor, nn

from selftaught.errors import InputError, MachineError
from selftaught.methods import Task
from selftaught.training.context import Run
from selftaught.training.inputs import Rows

FEATURES = ("h", "z")
# Names of scores.csv that are not a method's.
TAKEN = (
    *("path", "split", "label", "semi_label", "percentile", "flagged", "knn_score"),
    *("pretext_knn_score", "group", "patient", "body_part", "study", "problem", "row"),
)


def loss_of(outputs: Any, task: Task) -> Tensor:
    """The loss in what a task's `forward` gave.

    Raises:
        InputError: it is not `{"loss": 0-d float tensor with a gradient}`.
    """
    loss = outputs.get("loss") if isinstance(outputs, dict) else None
    if not (
        isinstance(loss, Tensor)
        and loss.ndim == 0
        and loss.is_floating_point()
        and loss.requires_grad
    ):
        raise _broken(task, "forward", outputs, '{"loss": a 0-d float tensor with a gradient}')
    return loss


def check_trained(task: Task) -> None:
    """Refuse a task that has nothing to train.

    Raises:
        InputError: a player has no parameter with a gradient.
    """
    for player in task.players:
        if not any(parameter.requires_grad for parameter in task.parameters_of(player)):
            raise _broken(task, f"parameters_of({player!r})", [], "parameters with requires_grad")


@torch.no_grad()
def check_scorer(task: Task, device: torch.device) -> None:
    """Try the scorer on two blank images.

    Raises:
        InputError: there is none, or its outputs are not as `Task.scorer` says.
    """
    scorer, size = task.scorer(), task.network.image_size
    if not isinstance(scorer, nn.Module):
        raise _broken(task, "scorer", scorer, "an nn.Module; a method without one cannot score")
    modes = [(module, module.training) for one in (task, scorer) for module in one.modules()]
    scorer.eval()
    outputs = scorer(torch.zeros(2, 1, size, size, device=device))
    for module, mode in modes:
        module.training = mode
    if not isinstance(outputs, dict) or not isinstance(outputs.get("score"), Tensor):
        raise _broken(task, "scorer", outputs, '{"score": a float tensor (B,), ...}')
    for name, values in outputs.items():
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        if name in TAKEN:
            raise _broken(task, "scorer", name, "outputs of other names than scores.csv has")
        if name in FEATURES:
            if len(shape) != 2 or shape[0] != 2:
                raise _broken(task, f"scorer output {name!r}", shape, "(B, D), here (2, D)")
        elif shape != (2,):
            raise _broken(task, f"scorer output {name!r}", shape, "(B,), here (2,)")


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


def _broken(task: Task, what: str, given: Any, allowed: str) -> InputError:
    if isinstance(given, dict):
        given = {name: tuple(getattr(value, "shape", ())) for name, value in given.items()}
    elif isinstance(given, Tensor):
        given = f"a tensor {tuple(given.shape)}"
    text = " ".join(str(given).split())[:200]
    return InputError(f"method {task.options.method}: {what} gave {text}; allowed: {allowed}")
