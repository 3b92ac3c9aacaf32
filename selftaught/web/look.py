"""The page: films with their scores and their like, labels of readers, and POST /score."""

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from selftaught.data.reader_labels import LABELS, LabelFile, current
from selftaught.errors import InputError, MachineError
from selftaught.evaluation.images import jpeg
from selftaught.evaluation.report import template
from selftaught.web.films import Films
from selftaught.web.pictures import LARGE, SMALL, Pictures
from selftaught.web.scoring import Service, plain

if TYPE_CHECKING:
    from selftaught.detector import Detector

HERE = Path(__file__).parent
FILES = {
    "page.js": "text/javascript",
    "page.css": "text/css",
    "icon.svg": "image/svg+xml",
}
ORDERS = ("score", "mixed", "list")
NAME = 60


class Look:
    """What the page asks for.

    Args:
        films: of a run or a list.
        labels: where readers' labels go.
        detector: gives the model; called when it is first needed.
        model: SHA-256 of its model.json.
        title: what is looked at.
        reader: the name that labels get unless the page gives another.
        maps: whether the model has a scale for heat maps.
    """

    def __init__(
        self,
        films: Films,
        labels: LabelFile,
        detector: "Callable[[], Detector]",
        *,
        model: str,
        title: str,
        reader: str,
        maps: bool = False,
    ) -> None:
        self.films, self.labels, self.model = films, labels, model
        self.title, self.reader, self.maps, self.secret = title, reader, maps, ""
        self._load = detector
        self._detector: Detector | None = None
        self._one, self._writing = threading.Lock(), threading.Lock()
        self.pictures = Pictures()
        self.numbers = {path: number for number, path in enumerate(films.table["path"])}
        self.service = Service(self._score, model)

    def app(self) -> Starlette:
        """The application, without its guard."""
        routes = [
            Route("/", self.page),
            Route("/static/{name}", self.static),
            Route("/films", self.listing),
            Route("/film/{number:int}", self.film),
            Route("/small/{number:int}", self.small),
            Route("/large/{number:int}", self.large),
            Route("/map/{number:int}", self.map),
            Route("/normal/{number:int}", self.normal),
            Route("/label", self.label, methods=["POST"]),
            Route("/undo", self.undo, methods=["POST"]),
            *self.service.routes,
        ]
        errors = {InputError: _wrong, MachineError: _failed}
        return Starlette(routes=routes, exception_handlers=errors)

    @property
    def detector(self) -> "Detector":
        """The model, read once."""
        with self._one:
            if self._detector is None:
                self._detector = self._load()
            return self._detector

    def _score(self, path: Path) -> dict[str, Any]:
        row = self.detector.explain([path]).iloc[0]
        return {str(name): value for name, value in row.items() if name != "path"}

    async def page(self, request: Request) -> Response:
        """The page itself; all else is fetched by its script."""
        facts = {
            "sets": self.films.sets,
            "threshold": self.films.threshold,
            "reader": self.reader,
            "normals": self.films.normals.words,
            "maps": self.maps,
        }
        text = template(HERE / "page.html").render(
            title=self.title, facts=json.dumps(facts), secret=self.secret
        )
        return HTMLResponse(text)

    async def static(self, request: Request) -> Response:
        """Script, style and icon."""
        name = request.path_params["name"]
        if name not in FILES:
            return _line(404, "there is no such file")
        return FileResponse(HERE / name, media_type=FILES[name])

    async def listing(self, request: Request) -> Response:
        """The films of a set in order, as columns; without scores where these are hidden."""
        query = request.query_params
        split, by, hidden = query.get("set", "all"), query.get("order"), query.get("hidden") == "1"
        if by not in ORDERS or split not in ("all", *self.films.sets):
            raise InputError(f"set or order: allowed: one of the page's, {', '.join(ORDERS)}")
        return JSONResponse(await run_in_threadpool(self._list, split, by, hidden))

    def _list(self, split: str, by: str, hidden: bool) -> dict[str, Any]:
        labels = current(self.labels.rows)
        labelled = [self.numbers[path] for path in labels if path in self.numbers]
        rows = self.films.order(split, by, hidden, labelled)
        part = self.films.table.iloc[rows]
        given = [] if hidden else [plain(value) for value in part["label"].to_numpy(float)]
        scores = [] if hidden else [plain(one) for one in part["score"].to_numpy(float)]
        mine = [labels.get(path, "") for path in part["path"]]
        return {"number": rows.tolist(), "score": scores, "given": given, "label": mine}

    async def film(self, request: Request) -> Response:
        """What is known of one film."""
        number, hidden = self._number(request), request.query_params.get("hidden") == "1"
        return JSONResponse(await run_in_threadpool(self._film, number, hidden))

    def _film(self, number: int, hidden: bool) -> dict[str, Any]:
        row = self.films.table.iloc[number]
        if hidden:
            return {}
        facts: dict[str, Any] = {"path": row["path"], "body_part": row["body_part"]}
        for name in ("score", "percentile", "label"):
            facts[name] = plain(row.get(name))
        like = self.films.like(number)
        facts["like"] = [{"number": one, "distance": distance} for one, distance in like]
        return facts

    async def small(self, request: Request) -> Response:
        """A thumbnail."""
        number = self._number(request)
        return await self._picture("small", number, lambda: self._jpeg(number, SMALL, 80))

    async def large(self, request: Request) -> Response:
        """A film to look at."""
        number = self._number(request)
        return await self._picture("large", number, lambda: self._jpeg(number, LARGE, 92))

    async def normal(self, request: Request) -> Response:
        """One of the normal films that others are compared with."""
        from selftaught.data.images.decode import read_grey

        number = request.path_params["number"]
        if number >= len(self.films.normals.paths):
            return _line(404, "there is no such film")
        return await self._picture(
            "normal", number, lambda: jpeg(read_grey(self.films.normals.file(number)), (360, 360))
        )

    async def map(self, request: Request) -> Response:
        """A film with the model's heat map over it."""
        number = self._number(request)
        return await self._picture("map", number, lambda: self._map(number))

    def _map(self, number: int) -> bytes:
        from selftaught.maps import film_of, overlay

        path, detector = self.films.file(number), self.detector
        part = str(self.films.table["body_part"].iloc[number])
        given = self.films.given(number, detector.preprocessing)
        with self.service.one:
            heat = detector.maps([path], **given)[0].numpy()
        film, cut = film_of(path, detector.preprocessing, part)
        return jpeg(overlay(film, heat, cut), LARGE, 92)

    def _jpeg(self, number: int, size: tuple[int, int], quality: int) -> bytes:
        from selftaught.data.images.decode import read_grey

        return jpeg(read_grey(self.films.file(number)), size, quality)

    async def _picture(self, kind: str, number: int, make: Callable[[], bytes]) -> Response:
        picture = await run_in_threadpool(self.pictures.get, (kind, number), make)
        return Response(picture, media_type="image/jpeg")

    def _number(self, request: Request) -> int:
        number: int = request.path_params["number"]
        if number >= len(self.films.table):
            raise InputError(f"film {number}: allowed: below {len(self.films.table)}")
        return number

    async def label(self, request: Request) -> Response:
        """Keep a label; answered when it is on the disk."""
        given = await _object(request)
        number, label = given.get("film"), given.get("label")
        fine = type(number) is int and 0 <= number < len(self.films.table)
        if not fine or not isinstance(label, str) or label not in LABELS:
            raise InputError(f"film or label: allowed: a film's number and {', '.join(LABELS)}")
        who, hidden = _reader(given), given.get("hidden") is True
        await run_in_threadpool(
            self._write, str(self.films.table["path"].iloc[number]), label, who, hidden
        )
        return JSONResponse({"film": number, "label": label})

    def _write(self, path: str, label: str, who: str, hidden: bool) -> None:
        with self._writing:
            self.labels.append(path, label, who=who, hidden=hidden, model=self.model)
        self.service.counts["labels_total"] += 1

    async def undo(self, request: Request) -> Response:
        """Take the reader's last label back; which film it was, null where there is none."""
        given = await _object(request)
        who, hidden = _reader(given), given.get("hidden") is True
        return JSONResponse(await run_in_threadpool(self._undo, who, hidden))

    def _undo(self, who: str, hidden: bool) -> dict[str, Any]:
        with self._writing:
            if (last := self.labels.before(who)) is None:
                return {"film": None, "label": ""}
            path, label = last
            self.labels.append(path, label, who=who, hidden=hidden, model=self.model, undo=True)
        return {"film": self.numbers.get(path), "label": label}


async def _object(request: Request) -> Mapping[str, Any]:
    try:
        given = json.loads(await request.body())
    except ValueError as error:
        raise InputError("the body is no JSON") from error
    if not isinstance(given, dict):
        raise InputError("the body is no JSON object")
    return given


def _reader(given: Mapping[str, Any]) -> str:
    """The reader's name, which goes into a file that spreadsheets open."""
    who = given.get("who")
    who = who if isinstance(who, str) else ""
    fine = 0 < len(who) <= NAME and who.isprintable()
    if not fine or not (who[0].isalnum() and who == who.strip()):
        raise InputError(f"reader is {who!r}; allowed: up to {NAME} characters, a letter first")
    return who


def _line(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status)


async def _wrong(request: Request, error: Exception) -> Response:
    return _line(422, str(error))


async def _failed(request: Request, error: Exception) -> Response:
    return _line(507, str(error))
