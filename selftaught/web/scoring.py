"""Scores over HTTP: POST /score takes a film's bytes, /healthz and /metrics say how it goes."""

import math
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from selftaught import __version__
from selftaught.errors import InputError, MachineError

# A film's file and what it was scored by name: at least score, percentile and flagged.
Score = Callable[[Path], Mapping[str, Any]]
WAITING = 8  # films that may wait for the model; who comes later is asked to come again
SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "TIFF": ".tif", "DICOM": ".dcm"}


class Service:
    """The three addresses, over anything that scores a file.

    Attributes:
        routes: to put into an application.
        one: held while the model computes.
        counts: figures of /metrics by name; others may add to them.
    """

    def __init__(self, score: Score, model: str) -> None:
        """Args: score: gives a film's scores, called by one thread at a time; model: its hash."""
        self._score, self._model = score, model
        self.one, self._waiting = threading.Lock(), 0
        self.counts: Counter[str] = Counter()
        self.routes = [
            Route("/score", self.score, methods=["POST"]),
            Route("/healthz", self.health),
            Route("/metrics", self.metrics),
        ]

    async def score(self, request: Request) -> Response:
        """The scores of the film in the body, as JSON."""
        if self._waiting >= WAITING:
            return self._refuse(503, "too many films are waiting", {"retry-after": "1"})
        self._waiting += 1
        try:
            body = await request.body()
            began = time.perf_counter()
            scores = await run_in_threadpool(self._scored, body)
        except InputError as error:
            return self._refuse(422, str(error))
        except MachineError as error:
            return self._refuse(503, str(error))
        finally:
            self._waiting -= 1
        self.counts["films_scored_total"] += 1
        self.counts["films_flagged_total"] += int(scores.get("flagged") or 0)
        self.counts["score_seconds_sum"] += time.perf_counter() - began  # type: ignore[assignment]
        self.counts["score_seconds_count"] += 1
        return JSONResponse({**scores, "model": self._model})

    def _scored(self, body: bytes) -> dict[str, Any]:
        from selftaught.data.images.decode import kind_by_content

        kind = kind_by_content(body[:132]) if body else None
        if kind is None:
            raise InputError(
                f"the body of {len(body)} bytes is no image; allowed: the bytes of an 8/16-bit "
                "PNG, JPEG, TIFF or DICOM file as they are, not a form"
            )
        with tempfile.TemporaryDirectory(prefix="selftaught-") as folder:
            path = Path(folder) / f"film{SUFFIXES[kind]}"
            path.write_bytes(body)
            try:
                with self.one:
                    scores = self._score(path)
            except InputError as error:
                raise InputError(str(error).replace(str(path), "the film")) from error
        return {name: plain(value) for name, value in scores.items()}

    def _refuse(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
        self.counts["films_refused_total"] += 1
        return JSONResponse({"error": text}, status, headers)

    async def health(self, request: Request) -> Response:
        """That it lives, and which model it is."""
        return JSONResponse({"status": "ok", "model": self._model, "selftaught": __version__})

    async def metrics(self, request: Request) -> Response:
        """Counters in Prometheus' text format."""
        names = ["films_scored_total", "films_flagged_total", "films_refused_total"]
        lines = []
        for name in [*names, *(n for n in self.counts if n.endswith("_total") and n not in names)]:
            lines += [f"# TYPE selftaught_{name} counter", f"selftaught_{name} {self.counts[name]}"]
        lines.append("# TYPE selftaught_score_seconds summary")
        for name in ("score_seconds_sum", "score_seconds_count"):
            lines.append(f"selftaught_{name} {self.counts[name]}")
        lines += ["# TYPE selftaught_waiting gauge", f"selftaught_waiting {self._waiting}"]
        text = "\n".join(lines) + "\n"
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


def plain(value: Any) -> Any:
    """A value as JSON has it: None for what is missing."""
    if hasattr(value, "item"):
        value = value.item()
    missing = value is None or type(value).__name__ in ("NAType", "NaTType")
    return None if missing or (isinstance(value, float) and not math.isfinite(value)) else value
