"""Which path is answered by what, and which are open to all."""

from __future__ import annotations

from collections.abc import Callable

from serving import app
from serving.metrics import ROUTES
from serving.page import FILES

ROUTE_TABLE: dict[str, dict[str, Callable]] = {
    "/health": {"GET": app.health},
    "/live": {"GET": app.live},
    "/metrics": {"GET": app.metrics},
    "/v1/models": {"GET": app.models},
    "/v1/models/{id:path}": {"GET": app.model},
    **{path: {"POST": app.generate} for path in ROUTES},
    **{prefix + path: methods for prefix in ("", "/v1") for path, methods in (
        ("/tokenize", {"POST": app.tokenize}), ("/detokenize", {"POST": app.detokenize}),
        ("/tokenizer_info", {"GET": app.tokenizer_info}))},
    "/": {"GET": app.page},
    **{f"/static/{name}": {"GET": app.page} for name in FILES},
}
OPEN = {"/health", "/live", "/", *(f"/static/{name}" for name in FILES)}  # answered without a key
