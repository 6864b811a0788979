"""What is served at which path."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib import resources
from typing import Final

from wasmkilnd.telemetry.admin.pages import Asset, LivePage
from wasmkilnd.telemetry.status_page.document import document, live
from wasmkilnd.telemetry.status_page.sampler import Sampler
from wasmkilnd.telemetry.status_page.sources import Sources

_HTML: Final = "text/html; charset=utf-8"
_ASSETS: Final = {
    "/status/page.css": ("page.css", "text/css; charset=utf-8"),
    "/status/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/status/icon.svg": ("icon.svg", "image/svg+xml"),
}


def status_pages(sources: Sources, sampler: Sampler) -> Mapping[str, LivePage | Asset]:
    """Return the pages by path."""
    whole = LivePage(_HTML, partial(document, sources, sampler))
    folder = resources.files(__package__) / "assets"
    return {
        "/": whole,
        "/status": whole,
        "/status/live": LivePage(_HTML, partial(live, sources, sampler)),
        **{
            path: Asset(kind, (folder / name).read_bytes())
            for path, (name, kind) in _ASSETS.items()
        },
    }
