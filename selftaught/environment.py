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
