"""A server for this machine alone: who may ask, how much, for how long, and where it listens."""

import asyncio
import hashlib
import hmac
import secrets
import socket
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from selftaught.errors import InputError

if TYPE_CHECKING:
    import uvicorn

ADDRESS = "127.0.0.1"
BODY_BYTES = 1 << 27  # of a film: 64 Mpx of 16 bits
SMALL_BYTES = 1 << 16  # of anything else
BODY_SECONDS, HEADER_SECONDS = 60.0, 20.0
CONNECTIONS = 64
HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    # Films of patients stay out of the browser's files.
    "cache-control": "no-store",
}


class Refused(HTTPException):
    """A request that gets an answer of one line in place of what it asked for."""


class Guard:
    """Lets through what this machine's user asks, and adds the headers that bind the browser.

    * `Host` must be this server's own: a foreign name that was pointed here (DNS rebinding) is not.
    * Nothing is served without the token: once in the address, then as a cookie of this site alone
      (or `Authorization: Bearer`, for programs).
    * What changes something must come from a page of this server (`Origin`), and where the cookie
      is what allows it, with the page's own secret, which no other site can read.
    * A body ends after `BODY_BYTES` and `BODY_SECONDS`.

    Args:
        app: what is guarded.
        port: that it is served on.
        token: "" = none is asked for.
    """

    def __init__(self, app: ASGIApp, port: int, token: str = "") -> None:
        self.app, self.token = app, token
        self.hosts = {f"{name}:{port}" for name in (ADDRESS, "localhost")}
        self.cookie = f"selftaught-{port}"

    @property
    def secret(self) -> str:
        """What pages send along with what they change."""
        return hmac.new(self.token.encode(), b"page", hashlib.sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                own = [(name.encode(), text.encode()) for name, text in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *own]
            await send(message)

        try:
            if (answer := self._check(scope)) is None:
                await self.app(scope, _limited(scope, receive), sending)
                return
        except Refused as refused:
            answer = PlainTextResponse(refused.detail, refused.status_code)
        if not started:
            await answer(scope, receive, sending)

    def _check(self, scope: Scope) -> Response | None:
        """An answer that needs nothing more; None: go on.

        Raises:
            Refused: it may not.
        """
        headers = _headers(scope)
        host = headers.get("host", "").lower()
        if host not in self.hosts:
            raise Refused(421, f"this server answers to {sorted(self.hosts)[0]} only")
        safe = scope["method"] in ("GET", "HEAD")
        if not safe and headers.get("origin", f"http://{host}") != f"http://{host}":
            raise Refused(403, "this request comes from another site; allowed: pages of this one")
        if not self.token:
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[-1]
        if safe and scope["path"] == "/" and _same(given, self.token):
            # The token leaves the address, and with it the history.
            answer = RedirectResponse("/", 303)
            answer.set_cookie(self.cookie, self.token, httponly=True, samesite="strict", path="/")
            return answer
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        if _same(bearer, self.token):
            return None
        if not _same(_cookie(headers, self.cookie), self.token):
            raise Refused(403, "the token is missing; open the address that the command printed")
        if not safe and not _same(headers.get("x-page-secret", ""), self.secret):
            raise Refused(403, "the page's secret is missing; load the page again")
        return None


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1"): text.decode("latin-1") for name, text in scope["headers"]}


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())


def _cookie(headers: dict[str, str], name: str) -> str:
    try:
        cookies = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return ""
    return cookies[name].value if name in cookies else ""


def _limited(scope: Scope, receive: Receive) -> Receive:
    """`receive` of a body that is neither too large nor too slow."""
    limit = BODY_BYTES if scope["path"] == "/score" else SMALL_BYTES
    declared = _headers(scope).get("content-length", "0")
    if declared.isdecimal() and int(declared) > limit:
        raise Refused(413, f"a body of {declared} bytes; allowed up to {limit}")
    left, ended = limit, False
    until = asyncio.get_running_loop().time() + BODY_SECONDS

    async def limited() -> Message:
        nonlocal left, ended
        if ended:
            return await receive()
        rest = until - asyncio.get_running_loop().time()
        try:
            message = await asyncio.wait_for(receive(), max(rest, 0))
        except (TimeoutError, asyncio.TimeoutError):
            raise Refused(408, f"the body did not come in {BODY_SECONDS:g} seconds") from None
        left -= len(message.get("body", b""))
        if left < 0:
            raise Refused(413, f"a larger body; allowed up to {limit} bytes")
        ended = not message.get("more_body", False)
        return message

    return limited


def new_token() -> str:
    """A secret of 192 bits for an address."""
    return secrets.token_urlsafe(24)


def listen(port: int) -> socket.socket:
    """A socket that listens on this machine alone; 0 = any free port.

    Raises:
        InputError: there is no such port, or it is taken.
    """
    if not 0 <= port < 1 << 16:
        raise InputError(f"port is {port}; allowed: 1 to 65535, or 0 for any that is free")
    open_ = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    open_.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        open_.bind((ADDRESS, port))
        open_.listen(128)
    except OSError as error:
        open_.close()
        raise InputError(
            f"port is {port}, which cannot be had ({error.strerror}); allowed: another one, or 0 "
            "for any that is free"
        ) from error
    return open_


def serve(app: ASGIApp, open_: socket.socket) -> None:
    """Answer until a signal comes."""
    server(app).run(sockets=[open_])


def server(app: ASGIApp) -> "uvicorn.Server":
    """What answers; nothing that is asked is logged."""
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Impatient(H11Protocol):
        """Closes connections on which no request has begun for as long."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.loop.call_later(HEADER_SECONDS, self._look, None)

        def _look(self, before: Any) -> None:
            if self.transport.is_closing():
                return
            if self.cycle is before and (before is None or before.response_complete):
                self.transport.close()
                return
            self.loop.call_later(HEADER_SECONDS, self._look, self.cycle)

    config = uvicorn.Config(
        app,
        http=Impatient,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)
