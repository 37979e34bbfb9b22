"""The page on which people talk to what is served, alone or two models side by side."""

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
"""Nothing from elsewhere is loaded, and nothing that a model writes is run."""


def add_pages(app: FastAPI) -> None:
    """Serves the page at /. It holds nothing secret, so that it wants no key; what it asks for does."""
    for path in PAGES:
        app.router.add_route(path, _page)


def page_text(name: str) -> str:
    """A file of the page."""
    return (files("togi.serve") / name).read_text("utf-8")


def _page(request: Request) -> Response:
    name, kind = PAGES[request.url.path]
    return Response(
        page_text(name), media_type=kind, headers={"Content-Security-Policy": POLICY, "X-Frame-Options": "DENY"}
    )
