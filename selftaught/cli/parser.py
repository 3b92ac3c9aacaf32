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


def parse(parser: ArgumentParser, arguments: Sequence[str], file: str = "") -> Namespace:
    """Parse, with one line of explanation where that fails.

    Args:
        parser: of the command.
        arguments: what was typed.
        file: what messages call the file of --config; by default as it was typed.

    Raises:
        InputError: an option is unknown or its value is not allowed; names the file it is in.
    """
    # The contract's short form of the one option that is about safety.
    short = {"--allow-outside": "--data.allow_outside=true"}
    words = [short.get(word, word) for word in arguments]
    typed, alone = _without_file(words)
    file = file or typed
    options, refusal = _parsed(parser, words)
    if options is None:
        # Without the file the same complaint is about what was typed.
        in_file = bool(file) and _parsed(parser, alone)[1] != refusal
        raise InputError(explain(refusal, parser) + (f"; the file is {file}" if in_file else ""))
    try:
        refuse_holes(options, parser.get_defaults())
    except InputError as error:
        raise InputError(in_file_of(str(error), file, words)) from error
    return options


def in_file_of(text: str, file: str, words: Sequence[str]) -> str:
    """A message that begins with an option's name, with the file, unless the option was typed."""
    option = f"--{text.split()[0]}"
    typed = any(word.split("=")[0] == option for word in words)
    return text if typed or not file else f"{text}; the file is {file}"


def _parsed(parser: ArgumentParser, words: Sequence[str]) -> tuple[Namespace | None, str]:
    """The options, or what the parser says against them."""
    from argparse import ArgumentError

    try:
        return parser.parse_args(list(words)), ""
    except (ArgumentError, ValueError, TypeError) as error:
        return None, str(error)


def _without_file(words: Sequence[str]) -> tuple[str, list[str]]:
    """The last --config that was typed, "" where none was, and the other words."""
    file, others, rest = "", [], iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        if option == "--config":
            file = value if equals else next(rest, "")
        else:
            others.append(word)
    return file, others


def same_file(a: Path, b: Path) -> bool:
    """Whether writing `a` would replace `b`."""
    return a.exists() and b.exists() and a.samefile(b)
