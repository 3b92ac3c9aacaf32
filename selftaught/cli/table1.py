"""`selftaught table1`: every system of the paper's Table 1 on the same images, and the table."""

import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from selftaught.cli.parser import build_parser, parse
from selftaught.cli.table_rows import draws, manifest_digest, options_in, resolved
from selftaught.environment import launched
from selftaught.errors import InputError, MachineError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from selftaught.table1.plan import Cell
    from selftaught.table1.worker import Means
    from selftaught.training.stop import Stopper

PLANNING = ("systems", "rows", "seeds", "known_abnormal", "label_draws", "cross", "folds", "set")
FLAGS = ("list", "dry", "collect", "cross")


def _parser() -> "ArgumentParser":
    parser = build_parser(
        "table1",
        "Run every system of the paper's Table 1 on the same images and compare them. All options "
        "of `selftaught run` are taken too, and hold for all cells.",
    )
    add = parser.add_argument
    add("--out", type=str, required=True, help="folder of the table, to make or to go on with")
    add(
        "--systems",
        type=str,
        default="paper",
        help="all, paper, extras or names: ours,uni-modal; own = the rows of --rows",
    )
    add("--rows", type=str, default="", help="YAML file of rows of your own (docs/table1.md)")
    add("--seeds", type=str, default="1,11,111,1111", help="one run of each system for each")
    add(
        "--known_abnormal",
        type=str,
        default="",
        help="label budgets: shares such as 0.025,0.05, or 10,20 images; with all and "
        "paper, those beside 0.05 are for ours and ruff alone, as in the paper (default: "
        "split.known_abnormal, which is 0.05)",
    )
    add("--label_draws", type=int, default=1, help="label draws that the seeds take in turn")
    add("--folds", type=int, default=0, help="cross-validation; the test set stays closed")
    add("--against", type=str, default="", help="row that all are compared with (default: ours)")
    add("--set", action="append", default=[], help="SYSTEM.option=value, for one system")
    add("--slots", type=str, default="auto", help="runs at a time; auto = one a GPU, or 1")
    add("--ranks", type=int, default=1, help="processes of each run, each with its own GPU")
    add("--retry", type=int, default=3, help="further attempts where a machine failed")
    add("--one", type=str, default="", help="run this cell of the plan alone: ours/b050/s0001")
    for name, text in (
        ("cross", "each seed with each label draw, not in turn"),
        ("list", "print a shell line for each cell, for job arrays, and end"),
        ("dry", "print cells, steps and estimated hours, timed here, and end"),
        ("collect", "make the tables of what is there, and end"),
    ):
        add(f"--{name}", action="store_true", help=text)
    return parser


def main(arguments: Sequence[str]) -> None:
    """Plan, run and collect; the same command goes on, on any number of machines."""
    parser = _parser()
    own, common = _divided(arguments)
    options = parse(parser, own)
    if launched():
        raise InputError("table1 starts its processes itself; allowed: --ranks, without a launcher")
    out = Path(options.out)
    if options.collect:
        print(_collect(out, options.against))
        return
    from selftaught.training.stop import Stopper

    stopper = Stopper().install()
    means = _means(options)
    if options.dry:
        _dry(out, options, own, common, means)
        return
    cells = _planned(out, options, own, common, stopper)
    if options.one and options.one not in {cell.name for cell in cells}:
        raise InputError(
            f"one is {options.one!r}; allowed: a cell of the plan: `--list` names them"
        )
    if options.list:
        print("\n".join(_lines(out, options, cells)))
        return
    _carry_out(out, cells, means, stopper, options)


def _divided(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """This command's own words, and those of the runs."""
    own: list[str] = []
    common: list[str] = []
    names = {*PLANNING, *FLAGS, "out", "slots", "ranks", "retry", "one", "against"}
    words = iter(arguments)
    for word in words:
        name, equals, _ = word.removeprefix("--").partition("=")
        mine = word in ("-h", "--help") or (word.startswith("--") and name in names)
        (own if mine else common).append(word)
        if mine and not equals and name not in (*FLAGS, "-h", "help"):
            own += [value for value in [next(words, None)] if value is not None]
    return own, common


def _adds(own: Sequence[str], common: Sequence[str]) -> bool:
    """Whether options are there that a plan is made of."""
    return bool(common) or not {name for name, _ in options_in(own)}.isdisjoint(PLANNING)


def _planned(
    out: Path, options: "Namespace", own: Sequence[str], common: Sequence[str], stopper: "Stopper"
) -> "list[Cell]":
    """The plan in a folder, with what is asked for added."""
    from selftaught.table1 import own_rows, plan, status
    from selftaught.table1.claim import alone
    from selftaught.table1.worker import wait_for

    there = plan.read_plan(out)
    if there and not _adds(own, common):
        return there  # Go on, with what was planned.
    if (options.one or options.list) and not common and not there:
        raise InputError(
            f"{out}: holds no plan yet; allowed: the options of a table, or its folder"
        )
    rows, base, manifest = resolved(out, options, common)
    plan.claim_table(out, base, manifest)
    with alone(out / plan.WORK / "plan.claim", wait_for(stopper)):
        own_rows.keep(out, {name: row.system for name, row in rows.items() if row.own})
        plan.extend(out, rows, **draws(options), manifest=manifest)
    return status.record(out, wait_for(stopper))


def _means(options: "Namespace") -> "Means":
    from selftaught.table1.machine import devices
    from selftaught.table1.worker import Means

    names, ranks = devices(), options.ranks
    most = len(names) or 1024
    if not 1 <= ranks <= most:
        raise InputError(f"ranks is {ranks}; allowed: 1 to {most}")
    slots = options.slots
    if slots != "auto" and not (slots.isdecimal() and 1 <= int(slots) <= 1024):
        raise InputError(f"slots is {slots!r}; allowed: auto or 1 to 1024")
    if options.retry < 0:
        raise InputError(f"retry is {options.retry}; allowed: 0 or more")
    number = max(1, len(names) // ranks) if slots == "auto" else int(slots)
    return Means(slots=number, ranks=ranks, retry=options.retry, devices=names)


def _lines(out: Path, options: "Namespace", cells: "Sequence[Cell]") -> list[str]:
    """A shell line for each run, those that others wait for first."""
    runs = sorted({cell.run: cell for cell in cells}.values(), key=lambda cell: cell.donor != "")
    more = ["--ranks", str(options.ranks)] * (options.ranks != 1)
    more += ["--retry", str(options.retry)] * (options.retry != 3)
    start = [sys.executable, "-m", "selftaught", "table1", "--out", str(out.absolute()), *more]
    return [shlex.join([*start, "--one", cell.name]) for cell in runs]


def _dry(
    out: Path, options: "Namespace", own: Sequence[str], common: Sequence[str], means: "Means"
) -> None:
    """Print what would be run, and how long that takes; nothing is written to the folder."""
    from selftaught.table1 import plan, status
    from selftaught.table1.estimate import estimate
    from selftaught.training.intake import wants_prepared

    there = plan.read_plan(out)
    with tempfile.TemporaryDirectory() as folder:
        place, cells = out, there
        if not there or _adds(own, common):
            # Last in the line wins: features are kept where the user has them, or for this time.
            common = ["--data.features", str(Path(folder) / "features"), *common]
            rows, base, manifest = resolved(out, options, common)
            if wants_prepared(base) and not (Path(base.data.pack) / "manifest.csv").is_file():
                raise InputError("dry: the films are not prepared yet; allowed: a prepared set")
            place = Path(folder) / "table"
            plan.claim_table(place, base, manifest)
            cells = plan.extend(place, rows, **draws(options), manifest=manifest)
        runs = {cell.run: cell for cell in reversed(cells)}  # the first row of each
        configs = {run: plan.settings_of(place, cell) for run, cell in runs.items()}
        left = [c for c in cells if runs[c.run] is c and not status.is_done(out / c.run)]
        print(f"{len(cells)} cells, {len(runs)} runs, {len(runs) - len(left)} of them done")
        if left:
            print("\n".join(estimate(left, configs, means.slots)))
        shared = {cell.row: runs[cell.run].row for cell in cells if runs[cell.run] is not cell}
        for row, owner in shared.items():
            print(f"{row}: nothing to train, another score of the runs of {owner}")


def _carry_out(
    out: Path,
    cells: "Sequence[Cell]",
    means: "Means",
    stopper: "Stopper",
    options: "Namespace",
) -> None:
    """Run what is left, then make the tables.

    Raises:
        InputError: some cells failed, all for what is wrong with the input.
        MachineError: some failed for other reasons.
    """
    from selftaught.table1 import plan, status
    from selftaught.table1.claim import alone
    from selftaught.table1.worker import Worker, wait_for
    from selftaught.training.intake import use_prepared

    only, wait, config = options.one, wait_for(stopper), plan.settings_of(out, cells[0])
    if any(cell.state != plan.DONE for cell in cells):  # the images may be gone afterwards
        plan.check_manifest(out, manifest_digest(config))
        with alone(out / plan.WORK / "prepare.claim", wait):
            use_prepared(config, out, stopper)
    cells = Worker(out, cells, means, stopper).work(only)
    if not only:
        with alone(out / plan.WORK / "collect.claim", wait):
            print(_collect(out, options.against))
    runs = {cell.run: cell for cell in cells if only in ("", cell.name)}
    failed = [cell for cell in runs.values() if cell.state == plan.FAILED]
    if failed:
        kinds = {status.trouble(out, cell).code for cell in failed}
        kind = InputError if kinds == {status.WRONG_INPUT} else MachineError
        first = failed[0]
        raise kind(
            f"{len(failed)} of {len(runs)} runs failed, the first is {first.name}: {first.problem}"
        )


def _collect(out: Path, against: str) -> Path:
    from selftaught.table1.collect import collect

    return collect(out, against)
