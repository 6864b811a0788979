"""The first look: what needs attention, the figures that matter, and the charts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from wasmkilnd.model import HITS
from wasmkilnd.telemetry.metrics import OK, LatencySummary, Metrics, Readings
from wasmkilnd.telemetry.status_page.charts import Chart, Series
from wasmkilnd.telemetry.status_page.elements import figures
from wasmkilnd.telemetry.status_page.history import Figures, Window
from wasmkilnd.telemetry.status_page.markup import Markup, tag
from wasmkilnd.telemetry.status_page.origins import ORIGINS
from wasmkilnd.telemetry.status_page.sources import Sources
from wasmkilnd.telemetry.status_page.words import NONE, count, duration, percent, rate


def attention(sources: Sources, now: Readings) -> Markup:
    """Return what an operator should know first; one sentence if all is well."""
    ready, why = sources.state()
    wrong: list[tuple[str, str]] = []
    if not ready:
        wrong.append(("bad", f"The daemon serves no call: {why}."))
    wrong += [("bad", f"{one.id} is not served: {one.cause}") for one in sources.unserved()]
    wrong += [
        ("warn", f"{engine.id} has a known vulnerability: see Engines.")
        for engine in sources.engines()
        if engine.advisories
    ]
    if sources.isolation_required and _any_not_confined(sources):
        wrong.append(("bad", f"Jobs are {sources.isolation()}."))
    if not (now.remote.up or now.remote.switched_off):
        detail = f": {now.remote.detail}" if now.remote.detail else ""
        wrong.append(("warn", f"Redis does not answer{detail}. Calls go on without it."))
    if now.tls.failures:
        wrong.append(("warn", "Changed TLS files could not be used; the old ones are in force."))
    wrong += [
        ("warn", f"The last reload of the {what} failed: see the log. What was in force stays so.")
        for what, reload in now.reloads.items()
        if not reload.succeeded
    ]
    if now.quarantined:
        modules = "module is" if now.quarantined == 1 else "modules are"
        wrong.append(("warn", f"{count(now.quarantined)} {modules} in quarantine."))
    if not wrong:
        return tag("p", "All is well: every engine is served, and every tier answers.", class_="ok")
    return tag("ul", *(tag("li", words, class_=level) for level, words in wrong), class_="wrong")


def note(sources: Sources) -> Markup | None:
    """Return what the operator allowed, and so needs no attention; None if there is nothing."""
    if sources.isolation_required or not _any_not_confined(sources):
        return None
    allowed = f"Jobs are {sources.isolation()}. isolation=best-effort allows that."
    return tag("p", allowed, class_="note")


def _any_not_confined(sources: Sources) -> bool:
    return any(not engine.isolation.holds for engine in sources.engines())


def headline(sources: Sources, now: Readings, window: Window) -> Markup:
    """Return the figures that matter."""
    served = window.served
    calls = sum(served)
    hits = sum(some for origin, some in zip(ORIGINS, served, strict=True) if origin in HITS)
    known_s = sum(column.span_s for column in window.known) or 1.0
    compiled = sum(column.compiled for column in window.known)
    failed = sum(column.failed for column in window.known)
    took = _took(sources.metrics)
    queued = sum(each.queued for each in now.engines.values())
    busy = sum(each.busy for each in now.engines.values())
    workers = sum(each.workers for each in now.engines.values())
    wait_s = max((each.expected_wait_s for each in now.engines.values()), default=0.0)
    return figures(
        ("Hit ratio", percent(hits / calls) if calls else NONE, f"of {count(calls)} calls"),
        ("Calls", rate(calls / known_s), f"{count(now.traffic.calls)} under way"),
        ("Compiles", rate(compiled / known_s), f"{count(compiled)} made, {count(failed)} failed"),
        (
            "A compile takes",
            duration(took.p50_s) if took.count else NONE,
            f"9 of 10 within {duration(took.p90_s)}" if took.count else "none yet",
        ),
        (
            "Queue",
            count(queued),
            f"one more would wait {duration(wait_s)}" if wait_s else "nobody waits",
        ),
        ("Workers busy", f"{busy} of {workers}", f"{count(now.flights)} compiles to do"),
    )


def charts(window: Window) -> Markup:
    """Return the charts of the last minutes."""
    return tag("div", *(chart.drawn(window) for chart in _charts(window)), class_="charts")


def _charts(window: Window) -> Sequence[Chart]:
    served = window.served
    calls = sum(served)
    last = window.latest
    compiled = sum(column.compiled for column in window.known)
    shares = [percent(each / calls) if calls else NONE for each in served]
    looks = list(ORIGINS.values())
    return (
        Chart(
            "origins",
            "Where artifacts come from",
            [Series(look.name, look.colour, _share_of(index)) for index, look in enumerate(looks)],
            lambda part: f"{part * 100:.0f} %",
            ", ".join(f"{look.name} {part}" for look, part in zip(looks, shares, strict=True)),
            top=1.0,
            stacked=True,
            legend=shares,
        ),
        Chart(
            "calls",
            "Calls and compiles per second",
            [
                Series("calls", "c1", lambda each: each.per_s(sum(each.served))),
                Series("compiles", "c5", lambda each: each.per_s(each.compiled + each.failed)),
            ],
            rate,
            f"{rate(last.per_s(sum(last.served)))} calls now",
            legend=[
                rate(last.per_s(sum(last.served))),
                rate(last.per_s(last.compiled + last.failed)),
            ],
        ),
        Chart(
            "duration",
            "How long compiles take",
            [
                Series("slowest", "c2", lambda each: each.slowest_s),
                Series("mean", "c5", lambda each: each.mean_s, line=True),
            ],
            duration,
            f"{count(compiled)} compiles",
            legend=[duration(last.slowest_s), duration(last.mean_s)],
        ),
        Chart(
            "queue",
            "Queue and workers",
            [
                Series("busy workers", "c2", lambda each: each.busy),
                Series("queued jobs", "c5", lambda each: each.queued, line=True),
            ],
            count,
            f"{last.busy} workers busy, {last.queued} jobs queued",
            legend=[str(last.busy), str(last.queued)],
            least=last.workers,
            whole=True,
        ),
    )


def _share_of(index: int) -> Callable[[Figures], float]:
    def share(column: Figures) -> float:
        calls = sum(column.served)
        return column.served[index] / calls if calls else 0.0

    return share


def _took(metrics: Metrics) -> LatencySummary:
    """Return the durations of the engine that compiled most."""
    compiles = list(metrics.took["compile_duration_seconds"].items())
    series = [took for labels, took in compiles if labels[-1] == OK]
    return max(series, key=lambda each: each.count).summary() if series else LatencySummary()
