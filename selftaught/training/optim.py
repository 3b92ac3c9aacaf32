"""Optimizers by name, and their state as named tensors that any engine can take up."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter

Name = Literal["adam", "sgd", "lars"]

MOMENTUM = 0.9
TRUST = 1e-3


class Lars(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling for large batches.

    You, Gitman and Ginsburg, "Large Batch Training of Convolutional Networks", 2017,
    arXiv:1708.03888. Each weight tensor moves at `lr * trust * |w| / (|g| + weight_decay * |w|)`;
    biases and the norms' scales and shifts (fewer than two dimensions) move at `lr`, undecayed.
    A tensor whose weights or gradients are all zero moves at `lr` too.

    Args:
        parameters: whole tensors; a flattened network has no layers, which is why ZeRO refuses it.
        lr: learning rate.
        momentum: share of the last update that is kept.
        weight_decay: coupled L2 of tensors with two dimensions or more.
        trust: the paper's eta, the share of its norm that a tensor moves at `lr` 1.
    """

    def __init__(
        self,
        parameters: Iterable[Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = MOMENTUM,
        weight_decay: float = 0.0,
        trust: float = TRUST,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update from the gradients at hand; `closure` is not used."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)

    def _move(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        if parameter.ndim > 1:
            decay = group["weight_decay"]
            size, slope = parameter.norm(), grad.norm()
            share = group["trust"] * size / (slope + decay * size)
            # No host sync: the choice is made on the device.
            share = torch.where((size > 0) & (slope > 0), share, torch.ones_like(share))
            grad = (grad + decay * parameter) * share
        kept = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
        moved = kept.mul(group["momentum"]).add_(grad, alpha=group["lr"])
        weights = parameter - moved
        bad = getattr(self, "found_inf", None)
        kept.copy_(moved if bad is None else torch.where(bad > 0, kept, moved))
        parameter.copy_(weights if bad is None else torch.where(bad > 0, parameter, weights))


def make_optimizer(
    name: Name,
    parameters: Sequence[Parameter] | Sequence[dict[str, Any]],
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    *,
    fused: bool = False,
) -> torch.optim.Optimizer:
    """The optimizer `name`; `set_rate` writes its learning rate at every step.

    Args:
        name: adam (the paper's), sgd or lars, both with momentum 0.9.
        parameters: what it moves, or its `groups`.
        weight_decay: coupled L2.
        betas: of adam.
        fused: adam and sgd move all parameters in one kernel, as pays on a GPU; same state.

    Raises:
        ValueError: `name` is none of them.
    """
    one = True if fused else None  # None is torch's own choice, False is not
    if name == "adam":
        return torch.optim.Adam(parameters, betas=betas, weight_decay=weight_decay, fused=one)
    if name == "sgd":
        return torch.optim.SGD(
            parameters, lr=0.0, momentum=MOMENTUM, weight_decay=weight_decay, fused=one
        )
    if name == "lars":
        return Lars(parameters, lr=0.0, weight_decay=weight_decay)
    raise ValueError(f"optimizer is {name!r}; allowed: adam, sgd, lars")


def groups(
    parameters: Iterable[Parameter], scales: Mapping[Parameter, float]
) -> list[dict[str, Any]]:
    """Parameters by the share of the learning rate that they move at, 1 first.

    Args:
        parameters: those of one optimizer; each group keeps their order.
        scales: the shares that are not 1.
    """
    by_scale: dict[float, list[Parameter]] = {}
    for parameter in parameters:
        by_scale.setdefault(scales.get(parameter, 1.0), []).append(parameter)
    return [{"params": by_scale[one], "scale": one} for one in sorted(by_scale, reverse=True)]


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Write a step's learning rate, of which each group has its share."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("scale", 1.0)


def update(optimizer: torch.optim.Optimizer, bad: Tensor | None = None) -> None:
    """One update; where `bad`, 0-d boolean on the parameters' device, is true, none.

    Fused optimizers and LARS look at it on the device. torch's others do not, and are used on a CPU
    alone, where reading it is no wait.
    """
    if isinstance(optimizer, Lars) or optimizer.defaults["fused"]:
        # The name by which torch's gradient scaler tells a fused optimizer.
        optimizer.found_inf = None if bad is None else bad.float()  # type: ignore[attr-defined]
    elif bad is not None and bad:
        return
    optimizer.step()


def numbers(parameters: Iterable[Parameter]) -> dict[Parameter, int]:
    """The number of each trained parameter, which names its state in checkpoints."""
    return {p: number for number, p in enumerate(p for p in parameters if p.requires_grad)}


def state_of(
    optimizer: torch.optim.Optimizer, names: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """Optimizer state, keys `<parameter number>.<name>`.

    Args:
        optimizer: any.
        names: numbers of its parameters; None: as they come.
    """
    return {
        f"{number if names is None else names[number]}.{name}": value
        for number, one in optimizer.state_dict()["state"].items()
        for name, value in one.items()
        if isinstance(value, Tensor)
    }


def nested(state: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """`state_of`'s tensors by parameter number, then by name."""
    out: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        number, name = key.split(".", 1)
        out.setdefault(int(number), {})[name] = value
    return out


def load_state(
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Tensor],
    names: Sequence[int] | None = None,
) -> None:
    """Load what `state_of` gave; entries of other parameters are left aside."""
    groups = optimizer.state_dict()["param_groups"]
    # torch would keep the given tensors themselves and move them.
    entries = nested({key: value.clone() for key, value in state.items()})
    if names is not None:
        entries = {number: entries[name] for number, name in enumerate(names) if name in entries}
    optimizer.load_state_dict({"state": entries, "param_groups": groups})
