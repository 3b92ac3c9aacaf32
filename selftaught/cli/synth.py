"""`selftaught synth`: a labelled set of synthetic radiographs with ground truth."""

from collections.abc import Sequence
from pathlib import Path

from selftaught.cli.options import build_parser, parse
from selftaught.errors import InputError


def main(arguments: Sequence[str]) -> None:
    """Write images, masks, manifest and ground truth."""
    from selftaught.phantoms.export import FORMATS

    parser = build_parser("synth", "Write synthetic radiographs with labels and ground truth.")
    parser.add_argument(
        "--out", type=str, required=True, help="folder to write; new, empty or this set's"
    )
    parser.add_argument("--images", type=int, required=True, help="number of images")
    parser.add_argument("--seed", type=int, default=1, help="of everything drawn")
    parser.add_argument("--size", type=int, default=512, help="major axis in pixels")
    parser.add_argument("--abnormal_fraction", type=float, default=0.4, help="share of images")
    parser.add_argument("--severity", type=float, default=0.6, help="of abnormalities, 0 to 1")
    parser.add_argument("--clutter", type=bool, default=True, help="carriers, frames, inverted")
    parser.add_argument(
        "--formats",
        type=list[str],
        default=["png8"],
        help=f"some of {', '.join(FORMATS)}, such as [png8,jpeg]",
    )
    parser.add_argument("--layout", type=str, default="manifest", help="manifest or mura")
    options = parse(parser, arguments)
    if options.images < 1:
        raise InputError(f"images is {options.images}; allowed: 1 or more")
    from selftaught.phantoms import write_set

    print(
        write_set(
            Path(options.out),
            options.images,
            seed=options.seed,
            size=options.size,
            abnormal_fraction=options.abnormal_fraction,
            severity=options.severity,
            clutter=options.clutter,
            formats=tuple(options.formats),
            layout=options.layout,
        )
    )
