"""`selftaught split`: who trains, who tests, whose labels are known."""

from collections.abc import Sequence
from pathlib import Path

from selftaught.cli.options import build_parser, parse, same_file
from selftaught.errors import InputError


def main(arguments: Sequence[str]) -> None:
    """Split a manifest, print the table and write split file and table (OUT and OUT.txt)."""
    from selftaught.data.split import SplitConfig

    parser = build_parser("split", "Grouped split and label draw; prints and writes the table.")
    parser.add_argument("manifest", type=str, help="CSV, parquet, normal/abnormal folder or MURA")
    parser.add_argument("--out", type=str, required=True, help="split file (CSV) to write")
    parser.add_argument("--data.allow_outside", type=bool, default=False, help="accept such")
    parser.add_class_arguments(SplitConfig, "split")
    options = parse(parser, arguments)
    from selftaught.data.manifest import read_manifest
    from selftaught.data.split import format_table, make_split, write_split
    from selftaught.files import write_atomic

    out = Path(options.out)
    if out.suffix != ".csv" or same_file(out, Path(options.manifest)):
        raise InputError(f"out is {options.out!r}; allowed: a .csv file other than the manifest")
    config = parser.instantiate(options).split
    frame = make_split(
        read_manifest(options.manifest, allow_outside=options.data.allow_outside), config
    )
    write_split(frame, out)
    write_atomic(Path(f"{out}.txt"), format_table(frame) + "\n")
    print(format_table(frame))
    print(out)
