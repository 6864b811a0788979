"""The page as a whole, and the part of it that changes."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from wasmkilnd.telemetry.status_page import lists, machinery, overview
from wasmkilnd.telemetry.status_page.elements import mark
from wasmkilnd.telemetry.status_page.markup import Markup, join, tag
from wasmkilnd.telemetry.status_page.sampler import Sampler
from wasmkilnd.telemetry.status_page.sources import Sources
from wasmkilnd.telemetry.status_page.words import duration

log = structlog.get_logger("wasmkilnd.telemetry")

_RELOAD_S = 10
"""How often a browser without scripts loads the page again."""


def document(sources: Sources, sampler: Sampler) -> bytes:
    """Return the page."""
    page = tag(
        "html",
        tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="color-scheme", content="light dark"),
            tag("title", f"wasmkiln on {sources.host}"),
            tag("link", rel="icon", href="status/icon.svg", type="image/svg+xml"),
            tag("link", rel="stylesheet", href="status/page.css"),
            tag("script", src="status/page.js", defer="defer"),
            tag("noscript", tag("meta", http_equiv="refresh", content=_RELOAD_S)),
        ),
        tag("body", _header(sources), tag("main", _live(sources, sampler), id="live"), _footer()),
        lang="en",
    )
    return f"<!doctype html>\n{page}\n".encode()


def live(sources: Sources, sampler: Sampler) -> bytes:
    """Return the part of the page that changes, for its script."""
    return _live(sources, sampler).encode()


def _header(sources: Sources) -> Markup:
    return tag(
        "header",
        tag("h1", "wasmkiln", tag("small", f" on {sources.host}")),
        tag("p", f"loads again every {_RELOAD_S} s", id="pulse"),
    )


def _footer() -> Markup:
    return tag(
        "footer",
        tag(
            "p",
            "The same figures for Prometheus: ",
            tag("a", "metrics", href="metrics"),
            ". Whether the daemon serves calls: ",
            tag("a", "readyz", href="readyz"),
            ".",
        ),
    )


def _live(sources: Sources, sampler: Sampler) -> Markup:
    metrics = sources.metrics
    now, now_s = metrics.gauges.read(), time.time()
    window = sampler.window()
    ready, _ = sources.state()
    about = tag(
        "p",
        mark("serving" if ready else "not serving", "good" if ready else "bad"),
        f" version {metrics.version}, up for {duration(int(metrics.uptime_s))}",
        class_="about",
    )
    return join(
        _section(
            "state",
            "State",
            lambda: join(about, overview.attention(sources, now), overview.note(sources)),
        ),
        _section("figures", "Figures", lambda: overview.headline(sources, now, window)),
        _section("charts", "The last minutes", lambda: overview.charts(window)),
        _section("tiers", "Tiers", lambda: machinery.tiers(sources, now)),
        _section("engines", "Engines", lambda: machinery.engines(sources, now)),
        _section("quarantine", "Quarantine", lambda: lists.quarantine(sources)),
        _section("recent", "Recent compiles", lambda: lists.recent(sources, now_s)),
    )


def _section(name: str, title: str, make: Callable[[], Markup]) -> Markup:
    try:
        body = make()
    except Exception as failure:  # one part must not cost the whole page
        log.warning("cannot show a part of the status page", part=name, error=repr(failure))
        body = tag("p", "This part cannot be shown: see the log of the daemon.", class_="wrong")
    heading = tag("h2", title, id=f"{name}-title")
    return tag("section", heading, body, id=name, aria_labelledby=f"{name}-title")
