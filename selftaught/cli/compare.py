"""`selftaught compare`: runs beside each other, on the same test images."""

import os
from collections.abc import Sequence
from pathlib import Path

from selftaught.cli.outputs import check_replace
from selftaught.cli.parser import build_parser, parse
from selftaught.errors import InputError

FILES = ("compare.csv", "compare.html")
MARKS = ("run", "auroc", "difference", "p_holm")
SHOWN = (
    *("run", "method", "auroc", "auroc_low", "auroc_high"),
    *("difference", "difference_low", "difference_high", "p_holm"),
)


def main(arguments: Sequence[str]) -> None:
    """Print the table; with --out write it as CSV and as a page."""
    parser = build_parser(
        "compare",
        "Compare runs on the same test images: AUROC, and its difference from the first run's "
        "with a paired bootstrap over patients.",
    )
    parser.add_argument("runs", type=str, nargs="+", help="run folders; the first is compared with")
    parser.add_argument(
        "--out", type=str, default="", help=f"folder for {FILES[0]} and {FILES[1]}; made if new"
    )
    options = parse(parser, arguments)
    out = Path(options.out) if options.out else None
    if out is not None:
        _check_folder(out)
    from selftaught.evaluation.compare import compare, render_page
    from selftaught.evaluation.run_files import read_run
    from selftaught.files import write_atomic

    runs = [read_run(Path(name)) for name in options.runs]
    table = compare(runs, _names(options.runs))
    rounded = table[list(SHOWN)].astype({"difference": float, "difference_low": float})
    print(rounded.to_string(index=False, na_rep="", float_format="{:.4f}".format))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / FILES[0], table.to_csv(index=False))
        write_atomic(out / FILES[1], render_page(table, runs))
        print(out / FILES[1])


def _names(folders: Sequence[str]) -> list[str]:
    """What tells the folders apart: their paths below the folder that holds all of them."""
    paths = [os.path.realpath(folder) for folder in folders]
    above = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, above) for path in paths]


def _check_folder(out: Path) -> None:
    """Refuse a folder that holds something else than an earlier comparison."""
    if out.exists() and not out.is_dir():
        raise InputError(f"out: {out} is a file; allowed: a folder that is new or empty")
    others = {path.name for path in out.iterdir()} - set(FILES) if out.is_dir() else set()
    if others:
        raise InputError(
            f"out: {out} holds {min(others)}; allowed: a folder that is new, empty or of an "
            "earlier comparison"
        )
    check_replace(out / FILES[0], MARKS)
    if (out / FILES[1]).exists() and not (out / FILES[0]).exists():
        raise InputError(f"out: {out / FILES[1]} is not of this command; allowed: a new folder")
