"""`selftaught split`: who trains, who tests, whose labels are known."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from selftaught.cli.outputs import check_out, check_replace
from selftaught.cli.parser import build_parser, parse, same_file
from selftaught.errors import InputError


def main(arguments: Sequence[str]) -> None:
    """Split a manifest, print the table; write split file, table, and what crosses the sets."""
    from selftaught.data.split import SplitConfig, SplitWarning

    parser = build_parser("split", "Grouped split and label draw; prints and writes the table.")
    parser.add_argument("manifest", type=str, help="CSV, parquet, normal/abnormal folder or MURA")
    parser.add_argument("--out", type=str, required=True, help="split file (CSV) to write")
    parser.add_argument("--data.allow_outside", type=bool, default=False, help="accept such paths")
    parser.add_class_arguments(SplitConfig, "split")
    options = parse(parser, arguments)
    import numpy as np

    from selftaught.console import Bar
    from selftaught.data.manifest import read_manifest
    from selftaught.data.split import check_classes, format_table, make_split, write_split
    from selftaught.data.split.leakage import (
        COLUMNS,
        leakage_files,
        report_leakage,
        without_leaks,
    )
    from selftaught.data.split.table import FIRST
    from selftaught.data.survey import survey
    from selftaught.files import write_atomic

    out = Path(options.out)
    if same_file(out, Path(options.manifest)):
        raise InputError(f"out is {options.out!r}; allowed: a .csv file other than the manifest")
    check_out(out, FIRST)
    pairs, facts = leakage_files(out)
    check_replace(pairs, COLUMNS)
    check_replace(facts, ("leakage",))
    config = parser.instantiate(options).split
    manifest = read_manifest(options.manifest, allow_outside=options.data.allow_outside)
    frame = make_split(manifest, config)
    rows = np.flatnonzero(frame["split"] != "unused")
    used = frame.iloc[rows]
    images = [manifest.root / name for name in used["path"]] if config.leakage != "off" else []
    bar = Bar("compare", len(images))
    try:
        checked = survey(images, hashes=True, done=bar.advance)
    finally:
        bar.close()
    if checked.problems:
        first = checked.problems[0]
        warnings.warn(
            f"{len(checked.problems)} of {len(images)} images cannot be read, the first is "
            f"{first.file}: {first.reason}",
            SplitWarning,
            stacklevel=2,
        )
    lines, excess = report_leakage(used, checked.hashes, checked.hashed, config.leakage, out)
    if excess.any():
        frame = without_leaks(frame, rows[excess])
        check_classes(frame, manifest.name, config)
    write_split(frame, out)
    write_atomic(Path(f"{out}.txt"), format_table(frame) + "\n")
    if config.folds:
        lines = [f"val is fold {config.fold} of 0 to {config.folds - 1}; test is closed", *lines]
    print("\n".join([format_table(frame), *lines]))
    print(out)
