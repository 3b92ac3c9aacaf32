"""`selftaught demo`: synthetic radiographs, then the whole job on them."""

from collections.abc import Sequence
from pathlib import Path

from selftaught.cli.options import build_parser, parse, read_config
from selftaught.errors import InputError

# What can be seen at 96 pixels; hairline fractures cannot.
KINDS = ("plate", "wire", "cast", "foreign", "dislocation")


def main(arguments: Sequence[str]) -> None:
    """Generate images in DIR/images, run in DIR/run, print the report's path."""
    parser = build_parser("demo", "Synthetic radiographs, then `run` with preset quick.")
    parser.add_argument("--out", type=str, default="demo", help="folder to write")
    parser.add_argument("--images", type=int, default=600, help="number of images")
    parser.add_argument("--seed", type=int, default=1, help="of images and training")
    options = parse(parser, arguments)
    if options.images < 200:
        raise InputError(f"images is {options.images}; allowed: 200 or more")
    from selftaught.data.synthetic import write_set
    from selftaught.training.run import run

    out = Path(options.out)
    manifest = out / "images" / "manifest.csv"
    if not manifest.exists():
        print(f"drawing {options.images} synthetic radiographs", flush=True)
        write_set(
            out / "images",
            options.images,
            seed=options.seed,
            size=160,
            clutter=False,
            severity=0.9,
            kinds=KINDS,
        )
    config = read_config(
        "run",
        "",
        [
            "--preset",
            "quick",
            "--data.manifest",
            str(manifest),
            "--out",
            str(out / "run"),
            "--seed",
            str(options.seed),
        ],
    )
    print(run(config) / "report.html")
