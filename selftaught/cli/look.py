"""`selftaught look`: a page on this machine to look at films and to label them."""

import getpass
from collections.abc import Sequence
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
    from selftaught.models.files import FACTS
    from selftaught.web.look import Look
    from selftaught.web.server import ADDRESS, Guard, listen, new_token, serve

    place = Path(options.model)
    model = place / "model" if (place / "model").is_dir() else place
    if not (model / FACTS).is_file():
        raise InputError(f"{place}: holds no model; allowed: a run folder or a model folder")
    open_ = listen(options.port)
    films, home = _films(place, model, options.data.manifest, options.data.allow_outside)
    labels = LabelFile(Path(options.labels) if options.labels else home / "labels.csv")
    if labels.cut:
        print(f"{labels.path}: a row that was never finished was cut off")

    def detector() -> "Detector":
        from selftaught.detector import Detector

        return Detector.load(model)

    title = Path(options.data.manifest or place).resolve().name
    look = Look(films, labels, detector, model=sha256(model / FACTS), title=title, reader=_reader())
    port, token = open_.getsockname()[1], new_token()
    guard = Guard(look.app(), port, token)
    look.secret = guard.secret
    print(f"labels go to {labels.path}")
    print(f"open http://{ADDRESS}:{port}/?token={token}", flush=True)
    try:
        serve(guard, open_)
    except KeyboardInterrupt:
        print(f"stopped; the labels are in {labels.path}")


def _films(place: Path, model: Path, source: str, allow_outside: bool) -> tuple["Films", Path]:
    """The films to show, and the folder where their labels go."""
    from selftaught.web.films import films_of_run, listed, normals_of_run

    if not source:
        if place == model:
            raise InputError(f"{place}: is no run folder; a model folder needs --data.manifest")
        return films_of_run(place), place
    from selftaught import distributed
    from selftaught.cli.score import scored
    from selftaught.data.manifest import read_manifest
    from selftaught.training.stop import Stopper

    device = distributed.start()
    how = {"allow_outside": allow_outside, "executor": "auto", "bad_files": "skip"}
    table = scored(model, Path(source), device, Stopper(), **how).table
    root = read_manifest(source, allow_outside=allow_outside, missing=True, unlabelled=True).root
    return listed(table, root, model, normals_of_run(place), not allow_outside), root


def _reader() -> str:
    """The name of who started this, as a first guess of who reads."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return "reader"
