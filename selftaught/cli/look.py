"""`selftaught look`: a page on this machine to look at films and to label them."""

import getpass
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from selftaught.cli.parser import build_parser, parse
from selftaught.errors import InputError

if TYPE_CHECKING:
    from selftaught.detector import Detector
    from selftaught.web.films import Films


def main(arguments: Sequence[str]) -> None:
    """Serve the page until a signal comes."""
    parser = build_parser("look", "A page to look at films, on this machine alone.")
    parser.add_argument("model", type=str, help="run folder, or model folder with --data.manifest")
    parser.add_argument(
        "--data.manifest", type=str, default="", help="new films to score and look at"
    )
    parser.add_argument("--data.allow_outside", type=bool, default=False, help="accept such paths")
    parser.add_argument(
        "--labels",
        type=str,
        default="",
        help="where labels are appended; labels.csv of the run, or beside the manifest",
    )
    parser.add_argument("--port", type=int, default=0, help="0 = any that is free")
    options = parse(parser, arguments)
    from selftaught.data.reader_labels import LabelFile
    from selftaught.files import sha256
    from selftaught.models.files import FACTS, MAPS, model_folder
    from selftaught.web.look import Look
    from selftaught.web.server import ADDRESS, Guard, listen, new_token, serve

    place, source = Path(options.model), options.data.manifest
    model = model_folder(place)
    if not (model / FACTS).is_file():
        raise InputError(f"{place}: holds no model; allowed: a run folder or a model folder")
    if not source and place == model:
        raise InputError(f"{place}: is no run folder; a model folder needs --data.manifest")
    outside = options.data.allow_outside
    open_ = listen(options.port)
    home = _root(source, outside) if source else place
    labels = LabelFile(Path(options.labels) if options.labels else home / "labels.csv")
    if labels.cut:
        print(f"{labels.path}: a row that was never finished was cut off")
    films, detector = _scored(place, source, outside) if source else _of_run(place)
    look = Look(
        films,
        labels,
        detector,
        model=sha256(model / FACTS),
        maps=(model / MAPS).is_file(),
        title=Path(source or place).resolve().name,
        reader=_reader(),
    )
    port, token = open_.getsockname()[1], new_token()
    guard = Guard(look.app(), port, token)
    look.secret = guard.secret
    print(f"labels go to {labels.path}")
    print(f"open http://{ADDRESS}:{port}/?token={token}", flush=True)
    try:
        serve(guard, open_)
    except KeyboardInterrupt:
        print(f"stopped; the labels are in {labels.path}")


def _root(source: str, allow_outside: bool) -> Path:
    """The folder of the films of a list."""
    from selftaught.data.manifest import read_manifest

    return read_manifest(source, allow_outside=allow_outside, missing=True, unlabelled=True).root


def _of_run(place: Path) -> tuple["Films", Callable[[], "Detector"]]:
    """The films that a run scored, and what reads its model once it is needed."""
    from selftaught.web.films import films_of_run

    def detector() -> "Detector":
        from selftaught.detector import Detector

        return Detector.load(place)

    return films_of_run(place), detector


def _scored(
    place: Path, source: str, allow_outside: bool
) -> tuple["Films", Callable[[], "Detector"]]:
    """The films of a list, scored now, and the model."""
    from selftaught import distributed
    from selftaught.cli.score import scored
    from selftaught.training.stop import Stopper
    from selftaught.web.films import films_of_list, normals_of_run

    device, stopper = distributed.start(), Stopper()
    found = scored(
        place,
        Path(source),
        device,
        stopper,
        allow_outside=allow_outside,
        executor="auto",
        bad_files="skip",
    )
    features = None if found.features is None else found.features.numpy()
    films = films_of_list(
        found.table,
        found.manifest.root,
        features,
        threshold=found.detector.calibration.threshold,
        normals=normals_of_run(place),
        contained=not allow_outside,
    )
    return films, lambda: found.detector


def _reader() -> str:
    """The name of who started this, as a first guess of who reads."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return "reader"
