"""A task from what a model folder says about it."""

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, get_type_hints

import torch
from torch import Tensor

from selftaught import methods
from selftaught.errors import InputError
from selftaught.methods.task import Task
from selftaught.models.encoder import measured
from selftaught.models.files import StoredModel, first_line
from selftaught.models.network import MEASURED, Network


def expected(stored: StoredModel) -> Mapping[str, Tensor]:
    """The state that the weights must fit, without memory, before anything is allocated."""
    with torch.device("meta"):
        return built(stored).state_dict()


def built(stored: StoredModel) -> Task:
    """The task of a stored model, not yet with its weights.

    Raises:
        InputError: there is no such method, or options or network are not such as it takes.
    """
    try:
        kind = methods.load(stored.method)
        options = _filled(kind.Options, {**stored.options, "method": stored.method})
        network = Network.from_facts(stored.network)
        if network.image_size != stored.preprocessing.image_size:
            raise ValueError(f"network.image_size is {network.image_size!r}, the films' another")
        return _compared(kind(options, network), stored.network)
    except InputError as error:
        raise InputError(f"{stored.path}: {error}") from error
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:
        reason = f"{stored.method} cannot be built: {first_line(error)}"
        raise InputError(f"{stored.path}: {reason}") from error


def _compared(task: Task, facts: Mapping[str, Any]) -> Task:
    """A task whose encoder measures what it did in training; older models do not say."""
    now, then = measured(task), facts.get(MEASURED) or {}
    for name, value in then.items():
        here = now.get(name, 0)
        # The network that takes smaller images than before is still the one that was trained.
        if here > value if name == "least_size" else here != value:
            raise ValueError(f"its encoder has {name} {here}, the model's had {value}")
    return task


def _filled(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """A dataclass of settings from JSON values; what is missing has its default."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{values!r}; allowed: settings by name")
    hints = get_type_hints(kind)
    nested = {name for name in values if is_dataclass(hints.get(name))}
    return kind(**{n: _filled(hints[n], v) if n in nested else v for n, v in values.items()})
