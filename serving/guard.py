"""What stands in front of every route: hosts, origins, keys, methods; errors in one form; a line of log for each."""

from __future__ import annotations

import hmac
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import compile_path

from serving.app import Outcome, Server
from serving.errors import ApiError, fault
from serving.metrics import ROUTES
from serving.routes import OPEN, ROUTE_TABLE

log = logging.getLogger("serving")
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
ALLOWED_HEADERS = "authorization, content-type"


@dataclass(frozen=True)
class Doors:
    """Who is let in."""

    keys: tuple[bytes, ...] = ()  # none: everybody
    hosts: tuple[str, ...] | None = None  # names that the Host header may have; None: all, as at a public address
    origins: tuple[str, ...] = ()  # of web pages of other hosts that may call


class Guard:
    """The ASGI application. It is protected by default: a route is open only where `OPEN` names it."""

    def __init__(self, server: Server, doors: Doors):
        self.server, self.doors = server, doors
        self._routes = [(path, *compile_path(path)[::2], methods) for path, methods in ROUTE_TABLE.items()]

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        begin, outcome, request = time.monotonic(), Outcome(), Request(scope, receive)
        identifier, status = secrets.token_hex(6), [0]

        async def sending(message) -> None:
            if message["type"] == "http.response.start":
                status[0] = message["status"]
                message = message | {"headers": [*message.get("headers", ()), *self._cors(request)]}
            await send(message)

        try:
            response = await self._answer(request, sending, outcome, identifier)
            if response is not None:
                await response(scope, receive, sending)
        except ConnectionError:
            status[0] = status[0] or 499  # nobody is there to hear it
        finally:
            route = ROUTES.get(scope["path"])
            if route is not None and scope["method"] == "POST":
                self.server.metrics.ended(route, outcome.outcome or "rejected")
            log.info("%s %s %s %d %.3f s, %d tokens in, %d out", identifier, scope["method"], _line(scope["path"]),
                     status[0], time.monotonic() - begin, outcome.tokens_in, outcome.tokens_out)

    async def _answer(self, request: Request, send: Callable, outcome: Outcome, identifier: str) -> Response | None:
        try:
            return await self._routed(request, send, outcome)
        except ApiError as error:
            return JSONResponse(error.body(), error.status, headers=error.headers)
        except ConnectionError:
            raise
        except Exception:
            log.exception("%s failed", identifier)
            return JSONResponse(fault(identifier).body(), HTTPStatus.INTERNAL_SERVER_ERROR)

    async def _routed(self, request: Request, send: Callable, outcome: Outcome) -> Response | None:
        path, method = request.url.path, request.method
        self._check_host(request)
        if method == "OPTIONS" and self._cors(request) and "access-control-request-method" in request.headers:
            return Response(status_code=204, headers={
                "Access-Control-Allow-Methods": "GET, POST", "Access-Control-Allow-Headers": ALLOWED_HEADERS,
                "Access-Control-Max-Age": "600"})
        known, methods = self._known(request)
        if known not in OPEN:
            self._check_key(request)
        if known is None:
            raise ApiError(404, f"there is nothing at {_line(path)}; docs/serving.md lists the routes", "not_found")
        handler = methods.get(method) or (methods.get("GET") if method == "HEAD" else None)
        if handler is None:
            allowed = ", ".join([*methods, *(["HEAD"] if "GET" in methods else [])])
            raise ApiError(405, f"{known} takes {allowed}, not {method[:20]}", "method_not_allowed",
                           headers={"Allow": allowed})
        if known in ROUTES:
            return await handler(self.server, request, send, outcome)
        found = handler(self.server, request)
        return found if isinstance(found, Response) else await found

    def _known(self, request: Request) -> tuple[str | None, dict[str, Callable]]:
        for path, pattern, converters, methods in self._routes:
            if found := pattern.match(request.url.path):
                request.scope["path_params"] = {name: converters[name].convert(value)
                                                for name, value in found.groupdict().items()}
                return path, methods
        return None, {}

    def _check_host(self, request: Request) -> None:
        if self.doors.hosts is None:
            return
        name = request.headers.get("host", "").lower()
        name = name.rpartition("]")[0] + "]" if name.startswith("[") else name.partition(":")[0]
        if name not in self.doors.hosts:
            raise ApiError(403, f"the Host header {name[:60]!r} is none of this server's names (--allowed-host)",
                           "host_not_allowed")

    def _check_key(self, request: Request) -> None:
        if not self.doors.keys:
            return
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        given = key.strip().encode("utf-8", "replace")
        is_right = [hmac.compare_digest(given, known) for known in self.doors.keys]  # all of them: equal time
        if kind.lower() != "bearer" or not any(is_right):
            raise ApiError(401, "an API key is needed: Authorization: Bearer KEY", "invalid_api_key",
                           headers={"WWW-Authenticate": "Bearer"})

    def _cors(self, request: Request) -> list[tuple[bytes, bytes]]:
        origin = request.headers.get("origin")
        if origin not in self.doors.origins:
            return []
        return [(b"access-control-allow-origin", origin.encode()), (b"vary", b"Origin"),
                (b"access-control-expose-headers", b"x-glm-ignored")]


def _line(path: str) -> str:
    """A path in a log or a message: short, and without what would begin another line."""
    return "".join(character if character.isprintable() else "?" for character in path[:100])
