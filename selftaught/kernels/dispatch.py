"""Which backend runs an op on a device, and why.

Order of choice: the `backend` argument, the environment variable `SELFTAUGHT_BACKEND`, the best
backend measured for the device. A backend is the `Backend` that
`selftaught.kernels.<name>` holds as BACKEND.

A module that is absent, or that fails to import, is an unavailable backend, never an error by
itself: only a backend that was asked for by name has to be there.
"""

import importlib
import importlib.util
import logging
import os
from functools import cache
from typing import NamedTuple

import torch

from selftaught.errors import InputError
from selftaught.kernels.backend import ABSENT, Backend, Request

BACKENDS = ("reference", "cpp", "triton", "cuda")
PRECISIONS = ("auto", "fp32", "fp16", "bf16")
OPS = ("ntxent", "supcon", "info_nce", "nearest_center", "mad")
VARIABLE = "SELFTAUGHT_BACKEND"
# "cuda" joins once it has been measured to beat "triton"; until then it is taken by name only.
BEST_FIRST = {"cpu": ("cpp", "reference"), "cuda": ("triton", "reference")}

_log = logging.getLogger("selftaught.kernels")


class BackendRow(NamedTuple):
    """One line of `backend_table`: can `backend` run `op` on `device`, and is it the one chosen."""

    op: str
    backend: str
    device: str
    available: bool
    reason: str
    chosen: bool


@cache
def load(backend: str) -> Backend | str:
    """The backend, or why there is none."""
    name = f"selftaught.kernels.{backend}"
    if importlib.util.find_spec(name) is None:
        return ABSENT
    try:
        return importlib.import_module(name).BACKEND
    except (ImportError, OSError) as error:
        return f"cannot be imported: {error}"


def refusal(backend: str, request: Request) -> str:
    """Why `backend` cannot serve `request`; "" where it can."""
    loaded = load(backend)
    return loaded if isinstance(loaded, str) else loaded.refusal(request)


def requested(backend: str | None) -> str:
    """The backend asked for by argument or environment, "auto" where nobody asked.

    Raises:
        InputError: the name is not one of `BACKENDS` or "auto".
    """
    name = backend or os.environ.get(VARIABLE) or "auto"
    if name != "auto" and name not in BACKENDS:
        where = "backend" if backend else VARIABLE
        raise InputError(f"{where}: got {name!r}, allowed are auto, {', '.join(BACKENDS)}")
    return name


@cache
def _say_fallback(op: str, device: str, chosen: str, why: str) -> None:
    _log.warning("%s on %s runs on backend %r because %s", op, device, chosen, why)


def _best(request: Request) -> str:
    refused: list[tuple[str, str]] = []
    for name in BEST_FIRST.get(request.device.type, ("reference",)):
        reason = refusal(name, request)
        if not reason:
            # An absent module is no news to anybody; a present one that refuses is.
            reasons = [f"{other}: {why}" for other, why in refused if why != ABSENT]
            if reasons:
                _say_fallback(request.op, request.device.type, name, "; ".join(reasons))
            return name
        refused.append((name, reason))
    raise AssertionError("the reference backend refuses nothing")


def choose(request: Request, backend: str | None = None) -> str:
    """Name of the backend that serves `request`.

    Args:
        request: op, device, dtype and width.
        backend: one of `BACKENDS`, "auto", or None for the environment's choice.

    Raises:
        InputError: a backend asked for by name is unknown, or cannot serve the request; the
            message says why and lists the backends that can.
    """
    name = requested(backend)
    if name == "auto":
        return _best(request)
    reason = refusal(name, request)
    if reason:
        there = [other for other in BACKENDS if not refusal(other, request)]
        raise InputError(
            f"backend: {name!r} cannot run {request.op} on {request.device.type} ({reason}); "
            f"available are {', '.join(there)}"
        )
    return name


def implementation(request: Request, backend: str | None = None) -> Backend:
    """The backend that serves `request`; see `choose`."""
    loaded = load(choose(request, backend))
    assert isinstance(loaded, Backend)
    return loaded


def widest_views(op: str, device: torch.device, dtype: torch.dtype, backend: str) -> int:
    """Widest embeddings that `ops.views` takes of an op and the backend of its choice; 0: none."""
    try:
        loaded = implementation(Request(op=op, device=device, dtype=dtype, width=1), backend)
    except InputError:  # the op that is then called says so
        return 0
    return int(getattr(loaded.losses, "widest_views", {}).get(op, 0))


# As torch.compiler.assume_constant_result marks it, which would import torch._dynamo here.
widest_views._dynamo_marked_constant = True  # type: ignore[attr-defined]


def backend_table() -> list[BackendRow]:
    """Every op, backend and device here, for `selftaught doctor` (float32, width 128).

    No row is `chosen` where `SELFTAUGHT_BACKEND` names a backend that cannot run the op.
    """
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    rows = []
    for device in devices:
        for op in OPS:
            request = Request(op=op, device=torch.device(device), dtype=torch.float32, width=128)
            try:
                chosen = choose(request)
            except InputError:  # the environment forces a backend that is not there
                chosen = ""
            for backend in BACKENDS:
                why = refusal(backend, request)
                rows.append(BackendRow(op, backend, device, not why, why, backend == chosen))
    return rows
