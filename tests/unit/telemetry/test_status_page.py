"""The status page: whatever callers send, it is text, and the page stays small."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from wasmkilnd.model import (
    CacheKey,
    EngineWarmUp,
    Isolation,
    Origin,
    RemoteStatus,
    Strike,
    TierUsage,
    UnservedEngine,
)
from wasmkilnd.telemetry.metrics import EngineUsage, Metrics
from wasmkilnd.telemetry.status_page import machinery
from wasmkilnd.telemetry.status_page.document import document, live
from wasmkilnd.telemetry.status_page.markup import escaped, join, tag
from wasmkilnd.telemetry.status_page.sampler import Sampler
from wasmkilnd.telemetry.status_page.sources import EngineView, Sources
from wasmkilnd.telemetry.status_page.words import count, duration, percent, rate, size

from tests.doubles.status_sources import CONFINED, sources

ENGINE = "wasmtime-50.0.1"
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</code></table></main><h1>owned",
    "&lt;script&gt;",
    "<!--",
    "]]><svg onload=alert(1)>",
    "javascript:alert(1)",
    "\u202egnp.exe",
    "a\x00b\x1b[31m",
]
_VOID = {"meta", "link", "rect", "path", "line"}


class Read(HTMLParser):
    """What a page consists of; it fails where elements are not nested."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page.decode())
        assert not self._open

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in _VOID
        self.elements.append((tag, dict(attrs)))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in _VOID
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def metrics() -> Metrics:
    made = Metrics("1.2.3")
    made.add_engine(ENGINE)
    made.gauges.engines[ENGINE] = lambda: EngineUsage(workers=2, busy=1)
    made.gauges.remote = lambda: RemoteStatus("embedded", up=True)
    made.gauges.tiers["memory"] = lambda: TierUsage(3, 97 * 2**20, 100 * 2**20)
    return made


def well(metrics: Metrics) -> Sources:
    return sources(metrics, engines=[EngineView(ENGINE, "CPython 3.13", True, CONFINED)])


def read(shown: Sources) -> Read:
    return Read(document(shown, Sampler(shown.metrics)))


def hostile(metrics: Metrics, text: str) -> Sources:
    """Return sources where every word that somebody else chooses is ``text``."""
    metrics.compile_ended(text, text, "", text, 0.1)
    metrics.gauges.remote = lambda: RemoteStatus("external", up=False, detail=text)
    metrics.gauges.warm_ups = lambda: [EngineWarmUp(text, text, 3, 1, 1)]
    return sources(
        metrics,
        host=text,
        state=(False, text),
        engines=[EngineView(text, text, True, Isolation(), [text])],
        unserved=[UnservedEngine(text, text)],
        strikes=[Strike(CacheKey(text, text), text, text, text, 2, 60.0)],
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_words_are_text(metrics: Metrics, text: str) -> None:
    expected = [(name, sorted(attrs)) for name, attrs in read(hostile(metrics, "plain")).elements]
    fresh = Metrics("1.2.3")
    fresh.add_engine(ENGINE)
    fresh.gauges.engines[ENGINE] = metrics.gauges.engines[ENGINE]
    fresh.gauges.tiers["memory"] = metrics.gauges.tiers["memory"]
    found = read(hostile(fresh, text))
    assert [(name, sorted(attrs)) for name, attrs in found.elements] == expected
    printable = "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
    assert f"{printable} is not served: {printable}" in found.text


def test_nothing_that_cannot_be_printed_gets_through() -> None:
    assert escaped("a\u202eb\x00c\nd") == "a\ufffdb\ufffdc\ufffdd"
    assert tag("p", "<", title='"') == '<p title="&quot;">&lt;</p>'
    assert join(tag("b", "<"), "<", None) == "<b>&lt;</b>&lt;"


def test_a_page_loads_nothing_from_elsewhere_and_holds_no_script(metrics: Metrics) -> None:
    for name, attributes in read(well(metrics)).elements:
        assert not [key for key in attributes if key.startswith("on") or key == "style"]
        for key in ("src", "href", "action"):
            assert not re.match(r"[a-z]+:|//", attributes.get(key) or ""), (name, attributes)
    assert not re.search(
        r"<(script|style)[^>]*>[^<]", document(well(metrics), Sampler(metrics)).decode()
    )


def test_all_is_well(metrics: Metrics) -> None:
    found = read(well(metrics))
    assert "All is well: every engine is served, and every tier answers." in found.text
    assert "wasmkiln on kiln-1" in found.text
    assert "97 MiB of 100 MiB" in found.text
    assert "No module is in quarantine." in found.text


def test_what_needs_attention_is_said_first(metrics: Metrics) -> None:
    metrics.gauges.remote = lambda: RemoteStatus("external", up=False, detail="refused")
    metrics.gauges.quarantined = lambda: 1
    metrics.reloaded("settings", succeeded=False)
    damaged = UnservedEngine("wasmer-1.1.0", "it is damaged")
    text = read(sources(metrics, state=(False, "draining"), unserved=[damaged])).text
    assert "The daemon serves no call: draining." in text
    assert "wasmer-1.1.0 is not served: it is damaged" in text
    assert "Redis does not answer: refused. Calls go on without it." in text
    assert "1 module is in quarantine." in text
    assert "The last reload of the settings failed: see the log." in text
    assert "All is well" not in text


def test_a_known_vulnerability_needs_attention(metrics: Metrics) -> None:
    words = "RUSTSEC-2026-0095: A guest can leave; see https://example.org/0095"
    vulnerable = EngineView(ENGINE, "CPython 3.13", True, CONFINED, [words])
    text = read(sources(metrics, engines=[vulnerable])).text
    assert f"{ENGINE} has a known vulnerability: see Engines." in text
    assert f"{ENGINE} has a known vulnerability. {words}" in text
    assert "All is well" not in text


def test_jobs_that_are_not_confined_need_attention(metrics: Metrics) -> None:
    open_engine = EngineView(ENGINE, "CPython 3.13", True, Isolation())
    text = read(sources(metrics, engines=[open_engine], isolation="not confined")).text
    assert "Jobs are not confined." in text
    assert "broken" in text
    assert "All is well" not in text


def test_jobs_that_the_operator_leaves_unconfined_are_a_note(metrics: Metrics) -> None:
    open_engine = EngineView(ENGINE, "CPython 3.13", True, Isolation())
    found = read(
        sources(metrics, engines=[open_engine], isolation="not confined", isolation_required=False)
    )
    assert "Jobs are not confined. isolation=best-effort allows that." in found.text
    assert "All is well" in found.text
    classes = [attrs.get("class") or "" for _, attrs in found.elements]
    assert "note" in classes
    assert not {"bad", "mark bad", "wrong"} & set(classes)


def test_a_redis_that_is_switched_off_is_nothing_to_mend(metrics: Metrics) -> None:
    metrics.gauges.remote = lambda: RemoteStatus("none", up=False, detail="switched off")
    assert "All is well" in read(well(metrics)).text


def test_recent_compiles_say_what_became_of_them(metrics: Metrics) -> None:
    metrics.compile_ended("a" * 64, ENGINE, Origin.COMPILED.value, "", 0.25)
    metrics.compile_ended("b" * 64, ENGINE, Origin.REDIS.value, "", 0.002)
    for _ in range(3):
        metrics.compile_ended("c" * 64, "", "", "COMPILE_TIMEOUT", 30.0)
    text = read(well(metrics)).text
    assert f"{'a' * 16}\N{HORIZONTAL ELLIPSIS}{ENGINE}okcompiled250 msnow" in text
    assert f"{'b' * 16}\N{HORIZONTAL ELLIPSIS}{ENGINE}okRedis2 msnow" in text
    assert f"{'c' * 16}\N{HORIZONTAL ELLIPSIS}defaultfailed 3 timesCOMPILE_TIMEOUT30 snow" in text


def test_a_part_that_fails_costs_no_other(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("hunter2")

    monkeypatch.setattr(machinery, "engines", broken)
    text = read(well(metrics)).text
    assert "This part cannot be shown: see the log of the daemon." in text
    assert "No module is in quarantine." in text
    assert "hunter2" not in text


def test_the_page_stays_small(metrics: Metrics) -> None:
    """With all that callers can fill it with."""
    for number in range(100):
        metrics.compile_ended(f"{number:02}" + "<" * 1000, ">" * 1000, "", "COMPILER_CRASHED", 1.0)
    strikes = [
        Strike(CacheKey(f"{number:064}", "f" * 64), ENGINE, "COMPILE_TIMEOUT", "m" * 5000, 9, 9.0)
        for number in range(10_000)
    ]
    shown = sources(metrics, strikes=strikes)
    page = live(shown, Sampler(metrics))
    assert "And 9,950 more." in page.decode()
    assert len(page) < 150_000


def test_words() -> None:
    assert [size(each) for each in (0, 1023, 1536, 97 * 2**20, 2**40)] == [
        *("0 B", "1,023 B", "1.5 KiB", "97 MiB", "1 TiB")
    ]
    assert [duration(each) for each in (0, 4e-6, 0.34, 30, 95, 3720, 200_000, float("nan"))] == [
        *("0 s", "4 µs", "340 ms", "30 s", "1 min 35 s", "1 h 2 min", "2 days", "\N{EN DASH}")
    ]
    assert [count(each) for each in (0, 99_999, 123_456, 1_200_000, 3e9, 4e12)] == [
        *("0", "99,999", "123 k", "1.2 M", "3 G", "4,000 G")
    ]
    assert [rate(each) for each in (0, 0.4, 12)] == ["0/s", "0.4/s", "12/s"]
    assert [percent(each) for each in (0, 0.0001, 0.5, 0.99999, 1)] == [
        *("0 %", "0.1 %", "50.0 %", "99.9 %", "100 %")
    ]
