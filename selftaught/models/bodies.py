"""Networks whose features an encoder takes: timm's, torchvision's, a file's or a user's own."""

import hashlib
import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth

from selftaught.errors import InputError

LITE = "efficientnet_lite0"
PREFIXES = ("timm/", "torchvision/")
FILES = (".pt", ".pth", ".ts", ".torchscript", ".pt2")
CUTS = ("fc", "classifier", "heads", "head")  # torchvision's names of a network's classifier
RESNETS = tuple(
    torchvision.models.list_models(
        torchvision.models, include=("resnet*", "resnext*", "wide_resnet*")
    )
)
ALLOWED = (
    f"one of {', '.join(RESNETS)}, {LITE}, timm/NAME, torchvision/NAME, the path of a TorchScript "
    "file (.pt, .ts) or torch.export file (.pt2), or the dotted path of an nn.Module such as "
    "my_module.Mine"
)
INSTALL = "pip install 'selftaught[pretrained]'"


def is_file(architecture: str) -> bool:
    """Whether an architecture is a program in a file."""
    return not architecture.startswith(PREFIXES) and architecture.endswith(FILES)


def known(architecture: str) -> bool:
    """Whether a name can be one that `build` takes."""
    dotted = all(part.isidentifier() for part in architecture.split(".")) and "." in architecture
    named = architecture.startswith(PREFIXES) and architecture.partition("/")[2] != ""
    return architecture in (*RESNETS, LITE) or named or is_file(architecture) or dotted


def build(architecture: str, digest: str = "") -> nn.Module:
    """The network without its classifier, with fresh weights or, from a file, with its own.

    Its own dropouts and stochastic depth are switched off: what they draw is no function of seed
    and image, so that a run that goes on would learn something else.

    Args:
        architecture: as `known` takes, other than a plain ResNet.
        digest: SHA-256 that a file must have, "" = any.

    Raises:
        InputError: there is no such network, or what it needs is not installed.
    """
    if is_file(architecture):
        return Program(Path(architecture), digest)
    if architecture == LITE:
        network = _timm(architecture, "tf_efficientnet_lite0", global_pool="")
    elif architecture.startswith("timm/"):
        network = _timm(architecture, architecture.partition("/")[2])
    elif architecture.startswith("torchvision/"):
        network = _torchvision(architecture)
    else:
        network = _dotted(architecture)
    for one in network.modules():
        if isinstance(one, (_DropoutNd, StochasticDepth)):
            one.p = 0.0
        elif type(one).__name__ == "DropPath":
            one.drop_prob = 0.0  # type: ignore[assignment]
    return network


def _timm(architecture: str, name: str, **more: Any) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise InputError(
            f"model.architecture is {architecture!r}, whose layers are timm's, which cannot be "
            f"imported ({error}); allowed: {INSTALL}, or a torchvision network such as resnet18"
        ) from error
    try:
        network: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, **more)
    except Exception as error:  # whatever it raises, there is no such network
        raise InputError(
            f"model.architecture is {architecture!r}, which timm {timm.__version__} cannot make "
            f"({_line(error)}); allowed: a name that timm.list_models() has"
        ) from error
    return network


def _torchvision(architecture: str) -> nn.Module:
    name = architecture.partition("/")[2]
    try:
        network: nn.Module = torchvision.models.get_model(name, weights=None)
    except Exception as error:
        raise InputError(
            f"model.architecture is {architecture!r}, which torchvision cannot make "
            f"({_line(error)}); allowed: a name that torchvision.models.list_models() has"
        ) from error
    cut = next((one for one in CUTS if isinstance(getattr(network, one, None), nn.Module)), None)
    if cut is None or getattr(network, "aux_logits", False):
        raise InputError(
            f"model.architecture is {architecture!r}, whose features cannot be taken by cutting "
            f"its classifier; allowed: a network with one output, called {', '.join(CUTS)}"
        )
    setattr(network, cut, nn.Identity())
    return network


def _dotted(architecture: str) -> nn.Module:
    module, _, attribute = architecture.rpartition(".")
    allowed = "allowed: the dotted path of an nn.Module class or of a function that gives one"
    try:
        maker = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"model.architecture is {architecture!r}, which cannot be imported ({_line(error)}); "
            f"{allowed}, in a folder that PYTHONPATH names"
        ) from error
    try:
        network = maker()
    except Exception as error:
        raise InputError(
            f"model.architecture is {architecture!r}, which cannot be called without arguments "
            f"({_line(error)}); {allowed}"
        ) from error
    if not isinstance(network, nn.Module):
        raise InputError(
            f"model.architecture is {architecture!r}, which gives {type(network).__name__}; "
            f"{allowed}"
        )
    return network


class Program(nn.Module):
    """A TorchScript or torch.export file: weights and layers, without the code they come from.

    Batch norms and dropouts stay as they were written, whatever mode is set, and weights move as
    far as the program lets them.

    Args:
        path: the file.
        digest: SHA-256 it must have, "" = any.

    Raises:
        InputError: it cannot be read, is another file, or no such program.
    """

    def __init__(self, path: Path, digest: str = "") -> None:
        super().__init__()
        if digest and file_digest(path) != digest:
            raise InputError(f"model.architecture: {path}: not the file that was trained with")
        with torch.device("cpu"):  # on the meta device too: programs cannot be built there
            self.program = _read(path)

    def train(self, mode: bool = True) -> "Program":
        """Leave the program as it was written; exported ones refuse another mode."""
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Any:
        """What the program gives."""
        return self.program(x)


def file_digest(path: Path) -> str:
    """SHA-256 of a program's file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"model.architecture: {path}: cannot be read: {error.strerror}") from error


def _read(path: Path) -> nn.Module:
    if not path.is_file():
        raise InputError(f"model.architecture: {path}: no such file")
    try:
        if path.suffix == ".pt2":
            return torch.export.load(path).module()
        return torch.jit.load(path, map_location="cpu").eval()
    except Exception as error:  # of zip, JSON, pickle or the program itself
        raise InputError(
            f"model.architecture: {path}: no TorchScript or torch.export program: {_line(error)}; "
            "allowed: what torch.jit.save or torch.export.save wrote"
        ) from error


@torch.no_grad()
def probe(network: nn.Module, architecture: str, side: int) -> tuple[int, int]:
    """Channels that a network takes, 3 or 1, and its number of features, by trying blank images.

    Args:
        network: without its classifier; left in its mode.
        architecture: its name.
        side: of the images.

    Raises:
        InputError: it does not take images of this size, or gives no features.
    """
    modes = [(one, one.training) for one in network.modules()]
    network.eval()
    place = torch.device("cpu") if isinstance(network, Program) else torch.get_default_device()
    problems = []
    try:
        for channels in (3, 1):
            try:
                return channels, _width(network(torch.zeros(2, channels, side, side, device=place)))
            except Exception as error:
                problems.append(_line(error))
    finally:
        for one, mode in modes:
            one.training = mode
    raise InputError(
        f"model.architecture is {architecture!r}, which gives no features of images of {side} px "
        f"({problems[0]}); allowed: a data.image_size that it takes, any number of images at once, "
        "3 or 1 channels, one output (B, W) or (B, W, H, W)"
    )


def _width(output: Any) -> int:
    if not isinstance(output, Tensor) or output.ndim not in (2, 4) or len(output) != 2:
        kind = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"two images give {kind}")
    if not output.dtype.is_floating_point:
        raise ValueError(f"its output is {output.dtype}")
    return output.shape[1]


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
