"""`selftaught dicom`: a folder of studies in, reports and captures for the archive out."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from selftaught.cli.outputs import check_replace
from selftaught.cli.parser import build_parser, parse
from selftaught.errors import InputError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

# What orchestrators tell their containers: mercure, then MONAI Deploy.
IN, OUT = ("MERCURE_IN_DIR", "HOLOSCAN_INPUT_PATH"), ("MERCURE_OUT_DIR", "HOLOSCAN_OUTPUT_PATH")


def main(arguments: Sequence[str]) -> None:
    """Write a TID 1500 report, a capture and a line of results.json for each film."""
    parser = build_parser("dicom", "Score a folder of DICOM studies; results are DICOM objects.")
    parser.add_argument("model", type=str, help="model folder, or run folder with one")
    for name, variables, what in (("in", IN, "films"), ("out", OUT, "results")):
        parser.add_argument(
            name,
            type=str,
            nargs="?",
            default="",
            help=f"folder of {what}; or {', '.join(variables)}",
        )
    add_captures(parser)
    options = parse(parser, arguments)
    source, out = _folder("in", options["in"], IN), _folder("out", options["out"], OUT)
    from selftaught.console import Bar
    from selftaught.dicom.folder import NAME, films_in, keep_quiet, process
    from selftaught.dicom.scorer import Scorer

    if (out / NAME).exists():
        check_replace(out / NAME, ("note", "model", "films"))
    count = len(films_in(source)[1])
    scorer = Scorer(Path(options.model), captures=options.captures)
    keep_quiet()
    bar = Bar("dicom", count, unit="films")
    try:
        films = process(scorer, source, out, bar.advance)["films"]
    finally:
        bar.close()
    fine = [film for film in films if not film["problem"]]
    flagged = sum(film.get("flagged", 0) for film in fine)
    print(f"{len(fine)} of {count} films scored, {flagged} flagged; research, not a diagnosis")
    print(out / NAME)


def add_captures(parser: "ArgumentParser") -> None:
    """The option --no-captures."""
    from jsonargparse import ActionYesNo

    action = ActionYesNo(yes_prefix="", no_prefix="no-")
    help = "--no-captures leaves out the pictures, for archives that show reports"
    parser.add_argument("--captures", action=action, default=True, help=help)


def _folder(name: str, given: str, variables: Sequence[str]) -> Path:
    for value in (given, *(os.environ.get(one, "") for one in variables)):
        if value:
            return Path(value)
    raise InputError(f"{name} is missing; allowed: a folder, or one in {' or '.join(variables)}")
