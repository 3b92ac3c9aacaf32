"""Which peers can be compared with here; none is ever imported by the package."""

import importlib.util
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch


class Peer(NamedTuple):
    """A library to compare with: our call of it, its module, whether it runs on a CPU."""

    function: Callable
    module: str
    on_cpu: bool = True

    def refusal(self) -> str:
        """Why it cannot run here, "" where it can."""
        if importlib.util.find_spec(self.module) is None:
            return f"{self.module} is not installed"
        if not self.on_cpu and not torch.cuda.is_available():
            return "runs on CUDA only"
        return ""


def present(peers: dict[str, Peer]) -> dict[str, Callable]:
    """Name to function of those that can run; the others are named on the terminal."""
    found = {}
    for name, peer in peers.items():
        why = peer.refusal()
        if why:
            print(f"{name}: skipped, {why}", file=sys.stderr)
        else:
            found[name] = peer.function
    return found
