"""`selftaught split`: who trains, who tests, whose labels are known."""

from collections.abc import Sequence
from pathlib import Path

from selftaught.cli.options import build_parser, parse


def main(arguments: Sequence[str]) -> None:
    """Split a manifest, print the table and write the split file."""
    from selftaught.data.split import SplitConfig

    parser = build_parser("split", "Grouped split and label draw; prints and writes the table.")
    parser.add_argument("manifest", type=str, help="CSV, parquet, normal/abnormal folder or MURA")
    parser.add_argument("--out", type=str, required=True, help="split file (CSV) to write")
    parser.add_argument("--allow_outside", type=bool, default=False, help="accept outside paths")
    parser.add_class_arguments(SplitConfig, "split")
    options = parse(parser, arguments)
    from selftaught.data.manifest import read_manifest
    from selftaught.data.split import format_table, make_split, write_split
    from selftaught.files import write_atomic

    config = parser.instantiate(options).split
    frame = make_split(read_manifest(options.manifest, allow_outside=options.allow_outside), config)
    out = Path(options.out)
    write_split(frame, out)
    write_atomic(out.with_suffix(".txt"), format_table(frame) + "\n")
    print(format_table(frame))
    print(out)
