"""`selftaught maps`: films with the heat of their scores, on one scale for all films of a model."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selftaught.cli.parser import build_parser, parse
from selftaught.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from selftaught.detector import BadFiles, Detector, Executor
    from selftaught.maps import Method

NORMALS = 64  # films that fix a scale, spread evenly over those that are offered


def main(arguments: Sequence[str]) -> None:
    """Write a film with its heat for every image."""
    from selftaught.maps.heat import METHODS

    parser = build_parser("maps", "Write each film with its heat: where its score comes from.")
    parser.add_argument("model", type=str, help="run folder, or model folder with --data.manifest")
    parser.add_argument(
        "--data.manifest",
        type=str,
        default="",
        help="films: a manifest or a folder; without it the run's own that stand out, which its "
        "report then shows",
    )
    parser.add_argument(
        "--data.normals",
        type=str,
        default="",
        help="manifest or folder whose normal films fix the scale anew; else a run's validation "
        "films do, once",
    )
    parser.add_argument("--data.allow_outside", type=bool, default=False, help="accept such paths")
    parser.add_argument(
        "--data.bad_files",
        type=Literal["fail", "skip"],
        default="fail",
        help="films that cannot be read: fail names the first and ends; skip gives them no map",
    )
    parser.add_argument(
        "--method",
        type=str,
        default="auto",
        help=f"auto, {', '.join(METHODS)}; auto is the best that the model allows (docs/maps.md)",
    )
    parser.add_argument("--out", type=str, default="", help="folder to write; new, or of the same")
    options = parse(parser, arguments)
    if options.method not in ("auto", *METHODS):
        raise InputError(f"method is {options.method!r}; allowed: auto, {', '.join(METHODS)}")
    chosen = None if options.method == "auto" else options.method
    model = Path(options.model)
    run = (model / "config.yaml").is_file() and (model / "scores.csv").is_file()
    if bool(options.data.manifest) != bool(options.out):
        missing = "out" if options.data.manifest else "data.manifest"
        raise InputError(f"{missing} is missing; allowed: --data.manifest FILMS --out DIR, or none")
    if not options.data.manifest and not run:
        raise InputError(f"{model}: is no finished run folder; a model needs --data.manifest")
    outside = options.data.allow_outside
    if options.data.manifest:
        more = {"method": chosen, "normals": options.data.normals}
        more |= {"allow_outside": outside, "bad_files": options.data.bad_files}
        print(maps_of_list(model, Path(options.data.manifest), Path(options.out), **more))
        return
    from selftaught.detector import Detector
    from selftaught.evaluation.heat import stand_out
    from selftaught.evaluation.report import write_report

    detector = Detector.load(model)
    method = chosen or detector.map_method
    fix_scale(detector, model, method, options.data.normals, outside)
    _maps_of(model / "maps", detector, method, *stand_out(model))
    print(write_report(model))


def maps_of_list(
    model: Path,
    source: Path,
    out: Path,
    *,
    method: "Method | None" = None,
    normals: str = "",
    allow_outside: bool = False,
    executor: "Executor" = "auto",
    bad_files: "BadFiles" = "fail",
) -> Path:
    """Write the folder of maps of a list of films.

    Args:
        model: model folder, or a run folder with one.
        source: manifest, or folder of images.
        out: folder to write.
        method: of maps; None = the best that the model allows.
        normals: as for `fix_scale`.
        allow_outside: accept paths that leave the manifest's folder.
        executor: who reads the images.
        bad_files: fail, or skip: no map, and the reason in the column `problem`.

    Returns:
        The table of the maps.

    Raises:
        InputError: model, source or folder is wrong, the model has no scale, or a film cannot be
            read that is not skipped.
    """
    from selftaught.data.manifest import read_manifest
    from selftaught.detector import Detector

    skip = bad_files == "skip"
    listed = read_manifest(source, allow_outside=allow_outside, missing=skip, unlabelled=True)
    detector = Detector.load(model, pipeline=executor)
    method = method or detector.map_method
    fix_scale(detector, model, method, normals, allow_outside)
    return _maps_of(out, detector, method, listed.table, listed.root, listed.digest, bad_files)


def _maps_of(
    out: Path,
    detector: "Detector",
    method: "Method",
    table: "pd.DataFrame",
    root: Path,
    films: str,
    bad_files: "BadFiles" = "fail",
) -> Path:
    from selftaught.console import Bar
    from selftaught.maps.folder import claim_maps, write_maps, write_table

    claim_maps(out, detector, method, films)
    bar = Bar("maps", len(table))
    try:
        maps = write_maps(
            out, detector, table, root, method=method, bad_files=bad_files, progress=bar.advance
        )
    finally:
        bar.close()
    return write_table(out, maps)


def fix_scale(
    detector: "Detector", model: Path, method: "Method", normals: str, allow_outside: bool
) -> None:
    """Give a detector the scale of its model, fixed now and kept where there is none yet.

    Args:
        detector: of the model.
        model: run or model folder.
        method: of maps.
        normals: list of normal films that fix it anew; "" = only where there is none.
        allow_outside: accept paths that leave the list's folder.

    Raises:
        InputError: no list, and neither a scale nor a run's validation films; or no normal film.
    """
    if method in detector.scales and not normals:
        return
    import numpy as np

    from selftaught.data.manifest import read_manifest
    from selftaught.errors import MachineError
    from selftaught.evaluation.heat import normal_validation
    from selftaught.maps.folder import films_of
    from selftaught.maps.scale import NO_SCALE, Scale, write_scale
    from selftaught.models.files import model_folder

    if normals:
        listed = read_manifest(Path(normals), allow_outside=allow_outside)
        table, root, where = listed.table, listed.root, f"data.normals: {normals}"
        table = table[(table["label"] == 0).fillna(False)]
    elif (model / "split.csv").is_file():
        table, root = normal_validation(model)
        where = f"{model / 'split.csv'}"
    else:
        raise InputError(f"{model}: {NO_SCALE}")
    if table.empty:
        raise InputError(f"{where} has no film of label 0; allowed: one or more normal films")
    chosen = np.unique(np.linspace(0, len(table) - 1, NORMALS).round().astype(int))
    films: Any = films_of(detector, table.iloc[chosen], root)
    scale = Scale.from_normals(method, detector.maps(**films, method=method, scaled=False))
    detector.scales[method] = scale
    try:
        print(
            f"{write_scale(model_folder(model), scale)}: scale fixed by {scale.films} normal films"
        )
    except MachineError as error:
        print(f"the scale is not kept: {error}")
