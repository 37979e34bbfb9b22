"""The web page for chatting with a served model, or with two side by side."""

from importlib.resources import files

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

PAGES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
"""The file behind each path, and its type."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'"
)
"""The browser loads nothing from elsewhere, and runs nothing that a model writes."""


def add_pages(app: FastAPI) -> None:
    """Serves the page at /. The page itself contains no secrets and needs no key; its requests do."""
    for path in PAGES:
        app.router.add_route(path, _page)


def page_text(name: str) -> str:
    """The text of one of the page's files."""
    return (files("togi.serve") / name).read_text("utf-8")


def _page(request: Request) -> Response:
    name, kind = PAGES[request.url.path]
    return Response(
        page_text(name), media_type=kind, headers={"Content-Security-Policy": POLICY, "X-Frame-Options": "DENY"}
    )
