"""The settings of a run from the command line: preset, YAML file, options, in rising order."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import yaml
from jsonargparse import ArgumentParser

from selftaught import methods
from selftaught.cli.parser import build_parser, in_file_of, parse
from selftaught.data.augment import Preset
from selftaught.errors import InputError
from selftaught.files import read_yaml
from selftaught.models.bodies import INSTALL
from selftaught.models.weights import pretrained
from selftaught.training.config import (
    STAGES,
    Config,
    build,
    flatten,
)
from selftaught.training.presets import WITHOUT_WEIGHTS, preset_methods, preset_overrides


def _value_of(option: str, arguments: Sequence[str]) -> str:
    # File, preset, run folder and methods decide what can be set: looked up before parsing.
    value = ""
    for position, word in enumerate(arguments):
        if word == f"--{option}" and position + 1 < len(arguments):
            value = arguments[position + 1]
        elif word.startswith(f"--{option}="):
            value = word.split("=", 1)[1]
    return value


def _saved(arguments: Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the run that is in the folder, where neither preset nor file is given."""
    out = _value_of("out", arguments) or given.get("out") or ""
    if not isinstance(out, str):
        raise InputError(f"{_value_of('config', arguments)}: out is {out!r}; allowed: a path")
    saved = Path(out) / "config.yaml" if out else None
    if given or _value_of("preset", arguments) or saved is None or not saved.is_file():
        return {}
    return read_yaml(saved)


def _methods(
    arguments: Sequence[str], file: Mapping[str, Any], defaults: Mapping[str, str]
) -> dict[str, str]:
    """The method of each stage, from the command line, the file or the saved run."""
    chosen = {}
    for stage, default in defaults.items():
        section = file.get(stage)
        name = section.get("method") if isinstance(section, Mapping) else None
        chosen[stage] = _value_of(f"{stage}.method", arguments) or str(name or default)
    return chosen


def _run_parser(command: str, description: str, chosen: Mapping[str, str]) -> ArgumentParser:
    """A parser of all settings, with the options of the methods that were chosen."""
    parser = build_parser(command, description)
    kinds = []
    for field in dataclasses.fields(Config):
        if field.name not in STAGES:
            kinds.append((field.name, field.type, field))
            continue
        try:
            options = methods.load(chosen[field.name]).Options
        except InputError as error:
            raise InputError(f"{field.name}.{error}") from error
        made: Callable[[], Any] = functools.partial(options, method=chosen[field.name])
        kinds.append((field.name, options, dataclasses.field(default_factory=made)))
    shape = dataclasses.make_dataclass("Config", kinds, frozen=True, kw_only=True)
    shape.__doc__ = Config.__doc__
    parser.add_class_arguments(shape, as_group=False)
    return parser


def _of_other_methods(name: str, given: Mapping[str, Any]) -> bool:
    """Whether a setting belongs to a method that was not chosen: a file may serve several."""
    stage, _, option = name.partition(".")
    section = given.get(stage)
    if stage not in STAGES or not isinstance(section, Mapping):
        return False
    others = {*methods.names(), str(section.get("method") or STAGES[stage])}
    return any(option in flatten(dataclasses.asdict(methods.options(one))) for one in others)


def read_config(
    command: str,
    description: str,
    arguments: Sequence[str],
    presets: Sequence[str] = get_args(Preset),
) -> Config:
    """The checked settings of a training command.

    Where `--out` names an existing run and neither preset nor file is given, that run's settings
    are the defaults, so that `selftaught run --out RUN` goes on with it.

    Args:
        command: its name.
        description: for its help.
        arguments: what was typed.
        presets: those it takes; the first holds where none is given.

    Raises:
        InputError: an option, value or file is wrong.
    """
    path = _value_of("config", arguments)
    given = read_yaml(Path(path)) if path else {}
    try:
        return _resolved(command, description, arguments, path, given, presets)
    except InputError as error:
        text = str(error)
        if text.split()[0] not in flatten(given) or path in text:
            raise
        raise InputError(in_file_of(text, path, arguments)) from error


def _resolved(
    command: str,
    description: str,
    arguments: Sequence[str],
    path: str,
    given: Mapping[str, Any],
    presets: Sequence[str],
) -> Config:
    saved = _saved(arguments, given)
    preset = _value_of("preset", arguments) or given.get("preset") or presets[0]
    if preset not in presets:
        raise InputError(f"preset is {preset!r}; allowed: {', '.join(presets)}")
    if preset in WITHOUT_WEIGHTS and not saved and not pretrained():
        other = WITHOUT_WEIGHTS[preset]
        warnings.warn(
            f"preset {preset} begins at ImageNet weights, which are not installed: {other} takes "
            f"its place, which begins at random ones, takes longer and detects less; remedy: "
            f"{INSTALL}, or --preset {other}",
            stacklevel=2,
        )
        preset = other
    usual = STAGES if saved else preset_methods(cast(Preset, preset))
    chosen = _methods(arguments, given or saved, usual)
    parser = _run_parser(command, description, chosen)
    known = flatten(parser.get_defaults().as_dict())
    defaults = flatten(saved) if saved else preset_overrides(cast(Preset, preset), chosen)
    parser.set_defaults({name: value for name, value in defaults.items() if name in known})
    namespace = parse(parser, _with_file(arguments, path, given, known), path)
    values = namespace.as_dict()
    del values["config"]
    try:
        config = build(values)
    except InputError as error:
        raise InputError(f"{error}; `{parser.prog} --help` lists the options") from error
    if not config.data.manifest:
        return config
    # Absolute, so that the run can be continued from another folder.
    files = {name: getattr(config.data, name) for name in ("manifest", "labels")}
    absolute: Any = {name: str(Path(path).absolute()) for name, path in files.items() if path}
    data = dataclasses.replace(config.data, **absolute)
    return dataclasses.replace(config, data=data)


def _with_file(
    arguments: Sequence[str], path: str, given: Mapping[str, Any], known: Mapping[str, Any]
) -> list[str]:
    """The arguments, `--config` without what only methods that were not chosen understand."""
    other = [
        name for name in flatten(given) if name not in known and _of_other_methods(name, given)
    ]
    if not other:
        return list(arguments)
    kept = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in given.items()
    }
    for name in other:
        stage, option = name.split(".")[:2]
        kept[stage].pop(option, None)
    text = yaml.safe_dump(kept)  # which the parser takes in place of a file's name
    return [text if word == path else word.replace(f"={path}", f"={text}") for word in arguments]
