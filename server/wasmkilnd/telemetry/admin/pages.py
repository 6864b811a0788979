"""Pages for browsers: what they are made of, and the headers that keep strangers out of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from wasmkilnd.telemetry.admin.shared_page import SharedPage

_HEADERS: Final = {
    # Nothing comes from elsewhere, nothing goes elsewhere, and no other site shows a page in its
    # own. No style and no script is written into a page, so that nothing injected could run.
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self';"
    " img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class LivePage:
    """A page that is made anew for those who ask."""

    kind: str
    """Its Content-Type."""
    render: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Asset:
    """A file that stays as it is."""

    kind: str
    content: bytes


Pages = Mapping[str, LivePage | Asset]
"""By path. Each path needs a row of ``access.needs``."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def add_pages(app: web.Application, pages: Pages, shared: SharedPage) -> None:
    """Have ``app`` serve ``pages``; ``shared`` bounds the time that making them takes."""
    for path, page in pages.items():
        app.router.add_get(path, _handler(path, page, shared))


def _handler(path: str, page: LivePage | Asset, shared: SharedPage) -> Handler:
    async def handle(_request: web.Request) -> web.Response:
        body = page.content if isinstance(page, Asset) else await shared.get(path, page.render)
        return web.Response(body=body, headers={"Content-Type": page.kind, **_HEADERS})

    return handle
