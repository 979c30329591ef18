"""The page's files: a fixed list, read when they are asked for."""

from __future__ import annotations

from pathlib import Path

from starlette.responses import Response

FOLDER = Path(__file__).resolve().parent / "static"
FILES = {"page.js": "text/javascript", "page.css": "text/css", "words.js": "text/javascript"}
INDEX = "index.html"
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
                               "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def page_file(path: str) -> Response:
    """What stands at "/" or "/static/NAME"."""
    name = path.rpartition("/")[2] or INDEX
    kind = FILES.get(name, "text/html")
    return Response((FOLDER / name).read_bytes(), media_type=f"{kind}; charset=utf-8", headers=HEADERS)
