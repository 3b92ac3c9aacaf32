"""Counter-based random streams: one independent generator per purpose and picture."""

import hashlib

import numpy as np


def stream(*key: int | str) -> np.random.Generator:
    """Philox generator whose numbers depend on `key` alone.

    Args:
        key: seed, picture number and purpose, in any order but always the same one.

    Returns:
        A generator; equal keys give bit-equal numbers in every process.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype="<u8")))
