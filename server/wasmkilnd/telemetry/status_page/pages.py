"""What is served at which path."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib import resources
from typing import Final

from wasmkilnd.telemetry.admin import Page
from wasmkilnd.telemetry.status_page.document import document, live
from wasmkilnd.telemetry.status_page.sampler import Sampler
from wasmkilnd.telemetry.status_page.sources import Sources

_HTML: Final = "text/html; charset=utf-8"
_ASSETS: Final = {
    "/status/page.css": ("page.css", "text/css; charset=utf-8"),
    "/status/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/status/icon.svg": ("icon.svg", "image/svg+xml"),
}


def status_pages(sources: Sources, sampler: Sampler) -> Mapping[str, Page]:
    """Return the pages by path."""
    whole = Page(_HTML, partial(document, sources, sampler))
    folder = resources.files(__package__) / "assets"
    return {
        "/": whole,
        "/status": whole,
        "/status/live": Page(_HTML, partial(live, sources, sampler)),
        **{
            path: Page(kind, (folder / name).read_bytes()) for path, (name, kind) in _ASSETS.items()
        },
    }
