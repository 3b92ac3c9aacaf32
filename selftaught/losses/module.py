"""A loss function as a module that keeps its settings."""

import inspect
from typing import Any

from torch import Tensor, nn

from selftaught.losses.checks import check_options, check_positive


class LossModule(nn.Module):
    """Keeps the keywords of `function`, but not those that are tensors of a call.

    A setting that is an `nn.Parameter`, such as a temperature, becomes a parameter of the module.

    Args:
        settings: keywords of the function.

    Raises:
        TypeError: the function has no such keyword.
        ValueError: a setting's value is not allowed.
    """

    function: Any
    PER_CALL = ("negatives", "active")

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        known = inspect.signature(self.function).parameters.values()
        defaults = {p.name: p.default for p in known if p.default is not p.empty}
        self._names = tuple(name for name in defaults if name not in self.PER_CALL)
        for name in settings:
            if name not in self._names:
                raise TypeError(f"{type(self).__name__}: there is no setting {name!r}")
        for name in self._names:
            setattr(self, name, settings.get(name, defaults[name]))
        values = self.settings()
        names = ("backend", "precision", "reduction", "exchange")
        check_options(*(values.get(name, "gather") for name in names))
        for name in ("temperature", "eta", "eps"):
            if not isinstance(values.get(name, 1.0), Tensor):
                check_positive(name, values.get(name, 1.0))

    def settings(self) -> dict[str, Any]:
        """Keywords of the function."""
        return {name: getattr(self, name) for name in self._names}

    def extra_repr(self) -> str:
        """Settings in the module's printed form."""
        return ", ".join(
            f"{name}={float(value.detach()):g}"
            if isinstance(value, Tensor)
            else f"{name}={value!r}"
            for name, value in self.settings().items()
        )
