"""`selftaught demo`: synthetic radiographs, then the whole job on them."""

from collections.abc import Sequence
from pathlib import Path

from selftaught.cli.options import build_parser, parse, read_config
from selftaught.errors import InputError

# Metal on long bones can be seen at 64 pixels; a hairline fracture cannot.
KINDS = ("plate", "wire")
PARTS = ("forearm", "wrist", "humerus")


def main(arguments: Sequence[str]) -> None:
    """Generate images in DIR/images, run in DIR/run, print the report's path."""
    parser = build_parser("demo", "Synthetic radiographs, then `run` with preset quick.")
    parser.add_argument("--out", type=str, default="demo", help="folder to write")
    parser.add_argument("--images", type=int, default=700, help="number of images")
    parser.add_argument("--seed", type=int, default=1, help="of images and training")
    options = parse(parser, arguments)
    if options.images < 200:
        raise InputError(f"images is {options.images}; allowed: 200 or more")
    from selftaught.phantoms import write_set
    from selftaught.training.run import run

    out = Path(options.out)
    others = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if strange := [name for name in others if name not in ("images", "run")]:
        raise InputError(
            f"out: {out} holds other files, such as {strange[0]}; allowed: a folder that is new, "
            "empty or this demo's"
        )
    manifest = out / "images" / "manifest.csv"
    if not manifest.exists():
        print(f"drawing {options.images} synthetic radiographs", flush=True)
    write_set(
        out / "images",
        options.images,
        seed=options.seed,
        size=128,
        clutter=False,
        severity=0.9,
        kinds=KINDS,
        body_parts=PARTS,
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
            "--split.known_normal",
            "0.1",
            "--split.known_abnormal",
            "0.1",
            "--seed",
            str(options.seed),
        ],
    )
    print(run(config) / "report.html")
