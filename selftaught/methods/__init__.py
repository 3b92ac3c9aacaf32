"""The methods: one file each, found by name here or by dotted path anywhere on the Python path.

A file of this folder lists its tasks in `TASKS` (name -> Task) and the rows of the paper's Table 1
that it completes in `SYSTEMS` (name -> System). CONTRIBUTING.md shows how to add one.
"""

import importlib
import pkgutil
from functools import cache

from selftaught.errors import InputError
from selftaught.methods.task import Options, Start, System, Task

__all__ = ["Options", "Start", "System", "Task", "load", "names", "options", "systems"]

PRETEXT, FINETUNE = "ntxent", "spheres"  # what a run uses unless told otherwise


@cache
def _files() -> list:
    found = [one.name for one in pkgutil.iter_modules(__path__)]
    return [importlib.import_module(f"{__name__}.{name}") for name in found]


@cache
def _tasks() -> dict[str, type[Task]]:
    return {name: task for file in _files() for name, task in getattr(file, "TASKS", {}).items()}


def names() -> list[str]:
    """The methods of this folder."""
    return sorted(_tasks())


def systems() -> dict[str, System]:
    """Named pairs of methods, the rows of Table 1."""
    return {name: one for file in _files() for name, one in getattr(file, "SYSTEMS", {}).items()}


def load(name: str) -> type[Task]:
    """The task behind a method's name.

    Args:
        name: one of `names()`, or the dotted path of a `Task` in any module on the Python path.

    Raises:
        InputError: there is no such method.
    """
    if name in _tasks():
        return _tasks()[name]
    allowed = f"allowed: {', '.join(names())}, or the dotted path of a Task such as my_module.Mine"
    module, dot, attribute = name.rpartition(".")
    if not dot or not module or module.startswith("."):
        raise InputError(f"method is {name!r}; {allowed}")
    try:
        task = getattr(importlib.import_module(module), attribute, None)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"method is {name!r}, which cannot be imported ({error}); {allowed}, in a folder that "
            "PYTHONPATH names"
        ) from error
    if not (isinstance(task, type) and issubclass(task, Task)):
        raise InputError(f"method is {name!r}, which is no selftaught.methods.Task; {allowed}")
    return task


def options(name: str, **values: object) -> Options:
    """A method's options, defaults where `values` names none.

    Raises:
        InputError: there is no such method.
        ValueError: a value is out of range; the message begins with the option.
    """
    return load(name).Options(method=name, **values)  # type: ignore[arg-type]
