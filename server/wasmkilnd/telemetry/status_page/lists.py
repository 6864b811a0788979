"""The last compiles, and the modules in quarantine."""

from __future__ import annotations

from wasmkilnd.telemetry.metrics import RecentCompile
from wasmkilnd.telemetry.status_page.elements import mark, table
from wasmkilnd.telemetry.status_page.markup import Child, Markup, join, tag
from wasmkilnd.telemetry.status_page.origins import ORIGINS
from wasmkilnd.telemetry.status_page.sources import Sources
from wasmkilnd.telemetry.status_page.words import count, duration

_SHOWN_DIGITS = 16
_SHOWN = 12
"""How many compiles are shown at once; a click shows the others."""
_QUARANTINED = 50


def recent(sources: Sources, now_s: float) -> Markup:
    """Return the last compiles, the newest first."""
    rows = [_compile(each, now_s) for each in list(sources.metrics.recent)]
    if not rows:
        return tag("p", "No module was compiled since the daemon started.", class_="remark")
    heads = ("Module", "Engine", "Ended", "Artifact", "Took", "When")
    older = rows[_SHOWN:]
    return join(
        table("Recent compiles", heads, rows[:_SHOWN], "compact"),
        tag(
            "details",
            tag("summary", f"{len(older)} more"),
            table("Recent compiles, older ones", heads, older, "compact"),
            id="older",
        )
        if older
        else None,
        tag(
            "p",
            "Hits in memory and in the host store are left out. What ended alike, one after the"
            " other, is one row.",
            class_="remark",
        ),
    )


def _compile(each: RecentCompile, now_s: float) -> tuple[Child, ...]:
    times = f" {count(each.count)} times" if each.count > 1 else None
    ended = mark("failed", "bad") if each.reason else mark("ok", "good")
    return (
        digest(each.module),
        each.engine or "default",
        join(ended, times),
        each.reason or _origin(each.origin),
        duration(each.took_s),
        ago(now_s - each.ended_s),
    )


def _origin(value: str) -> Child:
    look = next((look for origin, look in ORIGINS.items() if origin.value == value), None)
    if look is None:
        return value  # A call that ended before it had an artifact has none.
    return join(tag("i", class_=f"key {look.colour}", aria_hidden="true"), look.name)


def quarantine(sources: Sources) -> Markup:
    """Return the modules in quarantine that the daemon knows of, those that stay longest first."""
    strikes = sorted(sources.quarantined(), key=lambda each: -each.left_s)
    if not strikes:
        return tag("p", "No module is in quarantine.", class_="remark")
    heads = ("Module", "Engine", "Reason", "Strikes", "For another")
    rows: list[tuple[Child, ...]] = [
        (
            digest(each.key.module_sha256),
            each.engine_id,
            each.reason,
            count(each.count),
            duration(each.left_s),
        )
        for each in strikes[:_QUARANTINED]
    ]
    more = len(strikes) - len(rows)
    return join(
        table("Modules in quarantine", heads, rows, "compact"),
        tag("p", f"And {count(more)} more.", class_="remark") if more else None,
        tag("p", tag("code", "wasmkiln quarantine ls"), " tells more.", class_="remark"),
    )


def digest(module: str) -> Markup:
    """Return a module's digest, cut; the whole of it where the pointer rests."""
    cut = module[:_SHOWN_DIGITS] + ("…" if len(module) > _SHOWN_DIGITS else "")
    return tag("code", cut, title=module)


def ago(seconds: float) -> str:
    """Return how long something is past."""
    return "now" if seconds < 1 else f"{duration(int(seconds))} ago"
