"""The settings of a run from the command line: preset, YAML file, options, in rising order."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

from jsonargparse import ArgumentParser, Namespace

from selftaught.cli.explain import explain, refuse_holes
from selftaught.data.augment import Augment
from selftaught.errors import InputError
from selftaught.training.config import (
    Config,
    Preset,
    preset_overrides,
    read_yaml,
)
from selftaught.training.config_checks import check


def build_parser(command: str, description: str) -> ArgumentParser:
    """A parser that raises instead of exiting, with --config and --print_config."""
    parser = ArgumentParser(
        prog=f"selftaught {command}",
        description=description,
        exit_on_error=False,
        # An abbreviation would let a misspelt option pass for another one.
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file of options")
    return parser


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parse, with one line of explanation where that fails.

    Raises:
        InputError: an option is unknown or its value is not allowed.
    """
    from argparse import ArgumentError

    try:
        # The contract's short form of the one option that is about safety.
        short = {"--allow-outside": "--data.allow_outside=true"}
        options = parser.parse_args([short.get(word, word) for word in arguments])
    except (ArgumentError, ValueError, TypeError) as error:
        raise InputError(explain(str(error), parser)) from error
    refuse_holes(options, parser.get_defaults())
    return options


def same_file(a: Path, b: Path) -> bool:
    """Whether writing `a` would replace `b`."""
    return a.exists() and b.exists() and a.samefile(b)


def _value_of(option: str, arguments: Sequence[str]) -> str:
    # The preset and the run folder decide defaults, so they are looked up before parsing.
    found = ""
    for position, word in enumerate(arguments):
        if word == f"--{option}" and position + 1 < len(arguments):
            found = arguments[position + 1]
        elif word.startswith(f"--{option}="):
            found = word.split("=", 1)[1]
    return found


def _defaults(arguments: Sequence[str]) -> dict[str, Any]:
    """Defaults from the run that is in the folder, else from the preset."""
    file = _value_of("config", arguments)
    given = read_yaml(Path(file)) if file else {}
    out = _value_of("out", arguments) or given.get("out") or ""
    if not isinstance(out, str):
        raise InputError(f"{file}: out is {out!r}; allowed: a path")
    preset = _value_of("preset", arguments) or given.get("preset")
    saved = Path(out) / "config.yaml" if out else None
    if saved is not None and preset is None and not file and saved.is_file():
        return _flat(read_yaml(saved))
    preset = preset or "default"
    if preset not in get_args(Preset):
        raise InputError(f"preset is {preset!r}; allowed: {', '.join(get_args(Preset))}")
    return _flat(preset_overrides(cast(Preset, preset)))


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            out |= _flat(value, name + ".")
        else:
            out[name] = value
    return out


def _stage(options: Namespace) -> str:
    """Which stage's augmentation is refused: its message names the option only."""
    for stage in ("pretext", "finetune"):
        try:
            Augment(**vars(options[stage].augment))
        except ValueError:
            return f"{stage}.augment."
    return ""


def read_config(command: str, description: str, arguments: Sequence[str]) -> Config:
    """The checked settings of a training command.

    Where `--out` names an existing run and neither preset nor file is given, that run's settings
    are the defaults, so that `selftaught run --out RUN` goes on with it.

    Raises:
        InputError: an option, value or file is wrong.
    """
    parser = build_parser(command, description)
    parser.add_class_arguments(Config, as_group=False)
    parser.set_defaults(_defaults(arguments))
    namespace = parse(parser, arguments)
    try:
        made = parser.instantiate(namespace)
    except InputError:
        raise
    except ValueError as error:  # a dataclass refused its values
        text = f"{_stage(namespace)}{' '.join(str(error).split())}"
        raise InputError(f"{text}; `{parser.prog} --help` lists the options") from error
    del made["config"]
    config = check(Config(**vars(made)))
    if not config.data.manifest:
        return config
    # Absolute, so that the run can be continued from another folder.
    data = dataclasses.replace(config.data, manifest=str(Path(config.data.manifest).absolute()))
    return dataclasses.replace(config, data=data)
