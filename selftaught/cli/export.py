"""`selftaught export`: a trained model as one file that other runtimes read."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from selftaught.cli.parser import build_parser, parse
from selftaught.errors import InputError

if TYPE_CHECKING:
    from selftaught.detector import Detector
    from selftaught.export.check import Films

SETS = ("val", "test", "train")  # whose images come first


def main(arguments: Sequence[str]) -> None:
    """Write FILE.onnx or FILE.pt2, where its scores are the model's."""
    parser = build_parser("export", "Write a model as one file, films in, scores out.")
    parser.add_argument("model", type=str, help="run folder or model folder")
    parser.add_argument("--out", type=str, required=True, help="file to write, .onnx or .pt2")
    parser.add_argument(
        "--data.manifest",
        type=str,
        default="",
        help="images to compare file and model on; without it the run's own, else generated ones",
    )
    parser.add_argument("--data.allow_outside", type=bool, default=False, help="accept such paths")
    options = parse(parser, arguments)
    out, model = Path(options.out), Path(options.model)
    _check_out(out)
    from selftaught.detector import Detector
    from selftaught.export import check
    from selftaught.models.files import model_folder

    detector = Detector.load(model, device="cpu", pipeline="opencv")
    with tempfile.TemporaryDirectory() as extra:
        films = _films(
            model,
            options.data.manifest,
            detector,
            Path(extra),
            allow_outside=options.data.allow_outside,
        )
        facts = check.export(detector, model_folder(model), out, films)
    compared = facts["compared"]
    flagged = compared["flagged"]
    print(
        f"{compared['images']} images ({compared['origin']}): largest relative difference of a "
        f"score {compared['largest_difference']:.1e}, no flag changed"
        + ("" if flagged is None else f" ({flagged} flagged)")
    )
    print(out)


def _check_out(out: Path) -> None:
    """Refuse to replace what is no export."""
    from selftaught.export import contents

    if out.suffix not in contents.SUFFIXES:
        raise InputError(f"out is {str(out)!r}; allowed: a file {' or '.join(contents.SUFFIXES)}")
    if not out.parent.is_dir():
        raise InputError(f"out is {str(out)!r}: there is no folder {out.parent}")
    if out.exists():
        try:
            contents.read_facts(out)
        except InputError as error:
            raise InputError(
                f"{out}: exists and was not written by this command; allowed: a new file, or one "
                "that it wrote"
            ) from error


def _films(
    model: Path, source: str, detector: "Detector", folder: Path, *, allow_outside: bool
) -> "Films":
    """What to compare on: given images, or the run's own, filled up by generated ones."""
    from selftaught.data.manifest import read_manifest
    from selftaught.export.check import IMAGES, Films

    if source:
        listed = read_manifest(Path(source), allow_outside=allow_outside, unlabelled=True)
        step = max(1, len(listed.table) // IMAGES)
        table = listed.table.iloc[::step].head(IMAGES)
        paths = [listed.root / name for name in table["path"]]
        masks = [listed.root / name if name else None for name in table["mask"]]
        parts, origin = table["body_part"].tolist(), "of data.manifest"
    else:
        paths, masks, parts, origin = _own(model, IMAGES)
        if missing := IMAGES - len(paths):
            more = generated(folder, missing, detector)
            paths, masks = paths + more[0], masks + more[1]
            parts += [""] * missing
            origin = ", ".join([origin] * bool(origin) + [f"{missing} generated"])
    films = detector.preprocessing
    masked = films.masked and (any(masks) or films.prepared is None)
    return Films(paths, masks if masked else None, parts, origin)


def _own(model: Path, count: int) -> tuple[list[Path], list[Path | None], list[str], str]:
    """Images of a run that are still there, validation images first; none of a bare model."""
    from selftaught.data.manifest import read_manifest
    from selftaught.data.split import read_split

    if not (model / "config.yaml").is_file() or not (model / "split.csv").is_file():
        return [], [], [], ""
    from selftaught.cli.options import read_config
    from selftaught.training.intake import PREPARED, wants_prepared

    config = read_config("export", "", ["--out", str(model)])
    try:
        if wants_prepared(config):
            root = Path(config.data.pack or model / PREPARED)
        else:
            source = Path(config.data.manifest)
            root = read_manifest(source, allow_outside=True, check_files=False).root
    except InputError:  # the images are no longer there
        return [], [], [], ""
    table = read_split(model / "split.csv")
    table = table[table["split"].isin(SETS)].sort_values(
        "split", key=lambda names: names.map(SETS.index), kind="stable"
    )
    there = [row for row in table.itertuples() if exists(root / row.path)][:count]
    counts = {name: sum(row.split == name for row in there) for name in SETS}
    kinds = [f"{count} {name}" for name, count in counts.items() if count]
    return (
        [root / row.path for row in there],
        [root / row.mask if row.mask else None for row in there],
        [row.body_part for row in there],
        f"{', '.join(kinds)} of the run" if there else "",
    )


def exists(path: Path) -> bool:
    """Whether an image is a file, or in a pack."""
    from selftaught.data.images.pack import locate

    return locate(path) is not None or path.is_file()


def generated(
    folder: Path, count: int, detector: "Detector"
) -> tuple[list[Path], list[Path | None]]:
    """Synthetic films in files of 8 and 16 bits and of many sizes, with masks of the body.

    Where the model prepares its films they are whole; otherwise parts of films, which are larger
    and smaller than the network's input.
    """
    import numpy as np

    from selftaught.data.images.decode import read_grey
    from selftaught.phantoms import write_set
    from selftaught.phantoms.export import encode

    whole = detector.preprocessing.prepared is not None
    size = 3 * detector.image_size
    bases = write_set(folder / "whole", min(count, 16), size=size, formats=("png16",), workers=1)
    names = sorted((bases.parent / "images").iterdir())
    random = np.random.default_rng(0)
    paths: list[Path] = []
    masks: list[Path | None] = []
    for number in range(count):
        name = names[number % len(names)]
        image, mask = read_grey(name), read_grey(bases.parent / "masks" / name.name)
        if not whole:
            height, width = (int(random.integers(16, side)) for side in image.shape)
            y, x = (int(random.integers(0, side // 2)) for side in image.shape)
            image, mask = (one[y : y + height, x : x + width] for one in (image, mask))
        paths.append(folder / f"{number:03d}.png")
        paths[-1].write_bytes(encode(image, ("png8", "png16")[number % 2]))
        masks.append(folder / f"{number:03d}-mask.png" if mask.any() else None)
        if masks[-1] is not None:
            masks[-1].write_bytes(encode(mask.astype(np.uint16) * 257, "png8"))
    return paths, masks
