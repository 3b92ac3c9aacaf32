"""`selftaught split`: who trains, who tests, whose labels are known."""

from collections.abc import Sequence
from pathlib import Path

from selftaught.cli.options import build_parser, parse, same_file
from selftaught.errors import InputError


def main(arguments: Sequence[str]) -> None:
    """Split a manifest, print the table; write split file, table, and what crosses the sets."""
    from selftaught.data.split import SplitConfig

    parser = build_parser("split", "Grouped split and label draw; prints and writes the table.")
    parser.add_argument("manifest", type=str, help="CSV, parquet, normal/abnormal folder or MURA")
    parser.add_argument("--out", type=str, required=True, help="split file (CSV) to write")
    parser.add_argument("--data.allow_outside", type=bool, default=False, help="accept such")
    parser.add_class_arguments(SplitConfig, "split")
    options = parse(parser, arguments)
    from selftaught.data.manifest import read_manifest
    from selftaught.data.preflight import check_images
    from selftaught.data.prepare.progress import Bar
    from selftaught.data.split import format_table, make_split, write_split
    from selftaught.data.split_leakage import report_leakage
    from selftaught.files import write_atomic

    out = Path(options.out)
    if out.suffix != ".csv" or same_file(out, Path(options.manifest)):
        raise InputError(f"out is {options.out!r}; allowed: a .csv file other than the manifest")
    config = parser.instantiate(options).split
    manifest = read_manifest(options.manifest, allow_outside=options.data.allow_outside)
    frame = make_split(manifest, config)
    used = frame[frame["split"] != "unused"]
    images = [manifest.root / name for name in used["path"]] if config.leakage != "off" else []
    bar = Bar("compare", len(images), 0)
    try:
        checked = check_images(images, hashes=True, done=bar.advance)
    finally:
        bar.close()
    said = report_leakage(used, checked, config.leakage, out)
    write_split(frame, out)
    write_atomic(Path(f"{out}.txt"), format_table(frame) + "\n")
    print("\n".join([format_table(frame), *said]))
    print(out)
