"""Which peers can be compared with here; none is ever imported by the package."""

import importlib.util
import math
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch


class Peer(NamedTuple):
    """A library to compare with.

    Attributes:
        function: our call of it.
        module: what it needs installed.
        on_cpu: does it run there.
        most: products of two numbers that it is given at most on a CPU, where it takes long.
    """

    function: Callable
    module: str
    on_cpu: bool = True
    most: float = math.inf

    def refusal(self, products: int = 0) -> str:
        """Why it is not measured here on a problem of so many products, "" where it is."""
        if importlib.util.find_spec(self.module) is None:
            return f"{self.module} is not installed"
        if not self.on_cpu and not torch.cuda.is_available():
            return "runs on CUDA only"
        if products > self.most and not torch.cuda.is_available():
            return f"measured up to {self.most:.0e} products only, it takes long"
        return ""


def present(peers: dict[str, Peer], products: int = 0) -> dict[str, Callable]:
    """Name to function of those that are measured; the others are named on the terminal."""
    found = {}
    for name, peer in peers.items():
        why = peer.refusal(products)
        if why:
            print(f"{name}: skipped, {why}", file=sys.stderr)
        else:
            found[name] = peer.function
    return found
