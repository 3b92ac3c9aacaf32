"""A loss function as a module that keeps its settings."""

from typing import Any

from torch import Tensor, nn

from selftaught.losses.checks import check_options, check_positive


class LossModule(nn.Module):
    """Keeps keywords of a loss function as attributes.

    A setting that is an `nn.Parameter`, such as a temperature, becomes a parameter of the module.

    Args:
        settings: keywords of the function.

    Raises:
        ValueError: a setting's value is not allowed.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self._names = tuple(settings)
        for name, value in settings.items():
            setattr(self, name, value)
        names = ("backend", "precision", "reduction", "exchange")
        check_options(*(settings.get(name, "gather") for name in names))
        for name in ("temperature", "eta", "eps"):
            if not isinstance(settings.get(name, 1.0), Tensor):
                check_positive(name, settings.get(name, 1.0))

    def settings(self) -> dict[str, Any]:
        """Keywords of the function."""
        return {name: getattr(self, name) for name in self._names}

    def extra_repr(self) -> str:
        """Settings in the module's printed form."""
        return ", ".join(f"{name}={shown(value)}" for name, value in self.settings().items())


def shown(value: Any) -> str:
    """A setting in a module's printed form; a tensor by its number, which a meta tensor lacks."""
    if isinstance(value, Tensor) and not value.is_meta:
        return f"{float(value.detach()):g}"
    return repr(value)
