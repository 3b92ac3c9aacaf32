"""What a launcher says in environment variables; needs no torch."""

import os

from selftaught.errors import InputError


def number(*names: str, default: int) -> int:
    """The whole number in the first of the variables that is set.

    Raises:
        InputError: it is none.
    """
    for name in names:
        if (text := os.environ.get(name)) is not None:
            if not text.strip().isdecimal():
                raise InputError(
                    f"environment: {name} is {text!r}; allowed: a whole number, as launchers set it"
                )
            return int(text)
    return default


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return number("WORLD_SIZE", default=1) > 1


def global_rank() -> int:
    """Rank among all processes, as the launcher tells it; 0 without one."""
    return number("RANK", default=0) if launched() else 0


def local_rank() -> int:
    """Rank on this machine, as torchrun or SLURM tells it."""
    return number("LOCAL_RANK", "SLURM_LOCALID", default=0)


def local_world_size() -> int:
    """Number of processes of this run on this machine, as torchrun or DeepSpeed tells it."""
    return number("LOCAL_WORLD_SIZE", "LOCAL_SIZE", default=1)
