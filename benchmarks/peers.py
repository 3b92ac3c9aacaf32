"""Which peers can be compared with here; none is ever imported by the package."""

import importlib.util
import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class Compiled:
    """A function by torch.compile, which raises where it would go on in eager mode unseen.

    dynamo keeps eight versions of a function; `new_shape` before each shape lets none be the ninth.
    `fullgraph` makes that ninth, and any part that cannot be compiled, an error.
    """

    backend = "inductor"

    def __init__(self, function: Callable) -> None:
        self.function = function
        self.compiled: Callable | None = None

    def __call__(self, *arguments: Any) -> Any:
        if self.compiled is None:
            from torch._functorch import config

            config.donated_buffer = False  # else a compiled backward could be timed once only
            self.compiled = torch.compile(
                self.function, dynamic=False, fullgraph=True, backend=self.backend
            )
        return self.compiled(*arguments)


def new_shape() -> None:
    """Forget what torch.compile made for the shapes before."""
    import torch._dynamo as dynamo

    dynamo.reset()
    dynamo.utils.counters.clear()


def graphs() -> int:
    """How many graphs torch.compile made since `new_shape`."""
    import torch._dynamo as dynamo

    return int(dynamo.utils.counters["stats"]["unique_graphs"])


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
