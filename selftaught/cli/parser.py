"""Parsers of the commands: they raise instead of exiting, and say in one line what is wrong.

They need no torch, whose import takes as long as preparing many films.
"""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from selftaught.cli.explain import explain, refuse_holes
from selftaught.errors import InputError


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
