"""Weights that depend on a seed alone."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from selftaught.host import Float32


@contextmanager
def fresh_weights(seed: int, part: str = "") -> Iterator[None]:
    """Modules built meanwhile draw their weights from `seed`; no global generator moves.

    They are float32 on the CPU, whatever the defaults are; without memory inside
    `torch.device("meta")`.

    Args:
        seed: of the weights.
        part: names a stream of its own, so that the second network of a task does not repeat the
            numbers of the first.
    """
    if part:
        digest = hashlib.sha256(f"{seed} {part}".encode()).digest()
        seed = int.from_bytes(digest[:8], "little") >> 1
    meta = torch.get_default_device().type == "meta"
    place = torch.device("meta" if meta else "cpu")
    with torch.random.fork_rng(devices=[]), place, Float32(), torch.inference_mode(False):
        # torch.manual_seed would also reseed every accelerator, which fork_rng does not undo.
        torch.default_generator.manual_seed(seed)
        yield
