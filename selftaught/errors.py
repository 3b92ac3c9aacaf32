"""The two errors that end a command without a traceback, and the check of an option."""


class InputError(ValueError):
    """The user's input is wrong; exit code 2.

    The message is one line: where (file, row or option), what was found, what is allowed.
    """


class MachineError(RuntimeError):
    """The machine failed (disk full, device lost); exit code 3.

    The message is one line: what failed, what was saved and how to go on.
    """


def require(option: str, value: object, allowed: str, fine: bool) -> None:
    """Refuse an option's value.

    Raises:
        ValueError: `fine` is false; names option, value and what is allowed.
    """
    if not fine:
        raise ValueError(f"{option} is {value!r}; allowed: {allowed}")
