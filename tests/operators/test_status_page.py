"""The status page in a real browser: it loads, follows the daemon, and reads well on any screen."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Route
from playwright.sync_api import Error as PlaywrightError
from wasmkiln import Client, WasmkilnError

from tests.e2e.bearers import add_token
from tests.e2e.daemon import ONE_ENGINE, Daemon, fresh_state
from tests.e2e.wasm import constant
from tests.operators.browser import Visit, browsing
from tests.operators.conftest import Needs
from tests.operators.page_looks import BEYOND, CONTRASTS, SMALL

ENGINE = "wasmtime-50.0.1"
SECTIONS = ["state", "figures", "charts", "tiers", "engines", "jobs", "quarantine", "recent"]
# The smallest text that may be on the page, in pixels.
LEAST_TEXT = 12
# What a browser does with a tab that is out of sight.
HIDE = """(hidden) => {
  Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
}"""
_numbers = iter(range(10_000, 20_000))

Visiting = Callable[..., Visit]


@pytest.fixture(scope="module")
def browser(needs: Needs) -> Iterator[Browser]:
    """A browser that all tests of this file share."""
    with browsing(needs("chromium")) as running:
        yield running


@pytest.fixture
def visiting(browser: Browser, daemon: Daemon) -> Iterator[Visiting]:
    """Visit the page of the shared daemon; the tab is closed after the test."""
    with contextlib.ExitStack() as stack:

        def visit(**how: object) -> Visit:
            opened = Visit(browser, daemon.admin_url, **how)  # type: ignore[arg-type]
            stack.callback(opened.close)
            return opened

        yield visit


@pytest.fixture(scope="module", autouse=True)
def busy(daemon: Daemon) -> None:
    """Let the daemon have something to show: compiles, hits, and a module that is invalid."""
    with daemon.client() as client:
        for number in range(3):
            for _ in range(2):
                client.compile(constant(number), engine=ENGINE)
        with pytest.raises(WasmkilnError):
            client.compile(b"\0asm\1\0\0\0\x01\xff", engine=ENGINE)


def test_it_loads_and_says_how_the_daemon_is(visiting: Visiting) -> None:
    visit = visiting()
    visit.wait_for("#pulse.live")
    page = visit.page
    assert page.title().startswith("wasmkiln on ")
    assert [each.get_attribute("id") for each in page.locator("main > section").all()] == SECTIONS
    text = page.inner_text("body")
    assert "All is well: every engine is served, and every tier answers." in text
    assert "wasmer-1.1.0" in page.inner_text("#engines")
    assert "embedded, up" in page.inner_text("#tiers")
    assert "MODULE_INVALID" in page.inner_text("#recent")
    assert page.locator("svg[role=img]").count() >= 4
    assert page.locator("#figures b").count() == 6
    assert visit.wrong == []
    # A screen reader finds its way.
    assert page.get_attribute("html", "lang") == "en"
    assert page.locator("h1").count() == 1
    for section in page.locator("main > section").all():
        label = section.get_attribute("aria-labelledby")
        assert section.locator(f"h2#{label}").count() == 1
    assert page.locator("svg:not([role=img][aria-label])").count() == 0
    for table in page.locator("table").all():
        assert table.locator("caption").text_content()
        assert table.locator("thead th[scope=col]").count() > 1
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(each => each.id)")
    assert len(ids) == len(set(ids))


def test_it_follows_the_daemon_while_modules_are_compiled(
    visiting: Visiting, client: Client
) -> None:
    visit = visiting()
    visit.page.evaluate("window.loadedOnce = true")
    for _ in range(3):
        artifact = client.compile(constant(next(_numbers)), engine=ENGINE)
        visit.wait_for_words(artifact.header.module_sha256[:16])
    visit.wait_for("#chart-origins .area.c5[d*=v]")
    # All of that without loading the page again, nor anything but what it is drawn from.
    assert visit.page.evaluate("window.loadedOnce")
    assert visit.requested.count("/") == 1
    assert set(visit.requested[visit.requested.index("/status.json") :]) <= {
        "/status.json",
        "/status/icon.svg",
    }
    assert visit.wrong == []


def test_what_a_caller_sends_is_text(visiting: Visiting, client: Client) -> None:
    """An engine's name that is markup: neither the page nor its script takes it for that."""
    hostile = "<img src=/metrics onerror=alert(1)>"
    visit = visiting()
    with pytest.raises(WasmkilnError):
        client.compile(constant(next(_numbers)), engine=hostile)
    visit.wait_for_words(hostile)
    again = visiting()
    again.wait_for_words(hostile)
    assert again.page.get_by_text(hostile).count() == 1
    assert visit.page.locator("img").count() == 0
    assert "/metrics" not in visit.requested
    assert visit.wrong == []


def test_what_somebody_opened_stays_open(visiting: Visiting, client: Client) -> None:
    for _ in range(15):
        client.compile(constant(next(_numbers)), engine=ENGINE)
    visit = visiting()
    visit.page.click("#older > summary")
    artifact = client.compile(constant(next(_numbers)), engine=ENGINE)
    visit.wait_for_words(artifact.header.module_sha256[:16])
    assert visit.page.locator("#older").get_attribute("open") is not None
    assert visit.page.evaluate("document.activeElement.parentElement.id") == "older"


def test_it_says_when_the_daemon_does_not_answer(visiting: Visiting) -> None:
    visit = visiting()
    visit.wait_for("#pulse.live")
    assert visit.page.locator("#lost").is_hidden()
    visit.page.route("**/status.json", lambda route: route.abort())
    visit.wait_for("#pulse.lost")
    assert visit.page.inner_text("#pulse").startswith("no answer for ")
    lost = visit.page.inner_text("[role=alert]")
    assert lost.startswith("The daemon cannot be asked: no answer for ")
    assert "What you see is from " in lost
    visit.page.unroute("**/status.json")
    visit.page.route("**/status.json", lambda route: route.fulfill(status=403))
    visit.wait_for_words("the answer is 403")
    visit.page.unroute("**/status.json")
    visit.wait_for("#pulse.live")
    assert visit.page.locator("#lost").is_hidden()


def test_without_scripts_it_says_where_the_figures_are(visiting: Visiting) -> None:
    visit = visiting(script=False)
    link = visit.page.locator("noscript a[href=metrics]")
    link.wait_for(state="visible")
    assert visit.page.locator("main").is_hidden()
    assert visit.wrong == []


def test_it_asks_nothing_while_nobody_looks(visiting: Visiting) -> None:
    visit = visiting()
    visit.wait_for("#pulse.live")
    visit.page.evaluate(HIDE, True)
    visit.page.wait_for_timeout(500)
    asked = visit.requested.count("/status.json")
    visit.page.wait_for_timeout(4500)
    assert visit.requested.count("/status.json") == asked
    with visit.page.expect_response("**/status.json"):
        visit.page.evaluate(HIDE, False)
    assert visit.wrong == []


def test_charts_say_what_they_show_to_the_pointer_and_to_keys(visiting: Visiting) -> None:
    visit = visiting()
    visit.wait_for("#chart-origins .area.c1[d], #chart-origins .area.c5[d]")
    chart = visit.page.locator("#chart-calls .slider")
    chart.hover()
    assert ":" in visit.page.inner_text("#chart-calls .when")
    assert visit.page.inner_text("#chart-queue .when") == visit.page.inner_text(
        "#chart-calls .when"
    )
    chart.focus()
    visit.page.keyboard.press("Home")
    visit.page.keyboard.press("ArrowRight")
    assert chart.input_value() == "1"
    assert "calls \N{EN DASH}" in (chart.get_attribute("aria-valuetext") or "")
    visit.page.keyboard.press("End")
    assert chart.input_value() == "59"
    visit.page.keyboard.press("Tab")
    assert (chart.get_attribute("aria-valuetext") or "").startswith("now: calls ")
    assert visit.wrong == []


def test_what_needs_attention_is_said_first(visiting: Visiting) -> None:
    visit = visiting()
    visit.wait_for("#pulse.live")
    visit.page.route("**/status.json", lambda route: wrong_in(route))
    visit.wait_for_words("not serving")
    said = visit.page.locator("#attention li").all_inner_texts()
    assert said == [
        "The daemon serves no call: draining.",
        "wasmer-1.1.0 is not served: the daemon's log says why.",
        "wasmer-1.0.0 is not served: it calls itself wasmtime.",
        f"{ENGINE} has a known vulnerability: see Engines.",
        "No identities in a fleet: set one.",
        "Jobs are not confined: they could open a file.",
        "Redis does not answer: refused. Calls go on without it.",
        "The last reload of the settings failed: see the log.",
        "1 module is in quarantine.",
    ]
    assert f"{ENGINE} has a known vulnerability. TEST-1" in visit.page.inner_text("#engines")
    assert "broken" in visit.page.inner_text("#engines")
    assert visit.page.inner_text("#quarantine code") == f"{'a' * 16}\N{HORIZONTAL ELLIPSIS}"
    assert "down" in visit.page.inner_text("#tiers")
    visit.page.unroute("**/status.json")


def wrong_in(route: Route) -> None:
    """Answer as a daemon would where everything is wrong that may be."""
    answer = route.fetch()
    told = answer.json()
    served = next(each for each in told["engines"] if each["id"] == ENGINE)
    served |= {"confined": False, "advisories": ["TEST-1: a guest can leave"]}
    told |= {
        "ready": False,
        "state": "draining",
        "open_fleet": "set one",
        "unserved": {"wasmer-1.1.0": "", "wasmer-1.0.0": "it calls itself wasmtime"},
        "isolation": {"required": True, "summary": "not confined: they could open a file"},
        "failed_reloads": ["settings"],
        "quarantine": [
            {
                "module": "a" * 64,
                "engine": ENGINE,
                "reason": "COMPILE_TIMEOUT",
                "strikes": 2,
                "left_s": 60.0,
            }
        ],
    }
    told["shared"]["redis"] |= {"up": False, "detail": "refused"}
    told["stats"] |= {"quarantined_modules": 1}
    route.fulfill(response=answer, json=told)


def test_jobs_are_listed(visiting: Visiting) -> None:
    runs = {"id": "5ff1", "namespace": "team", "callers": 2, "module_sha256": "b" * 64}
    runs |= {"engine": ENGINE, "work": "compile", "waited": "0.2s", "ran": "31s"}
    waits = {"id": "5ff2", "callers": 1, "engine": ENGINE, "work": "validate", "waited": "3s"}
    jobs = {"jobs": [{**runs, "memory_bytes": str(2**30)}, waits], "more_jobs": 7}

    def busy_in(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json=answer.json() | jobs)

    visit = visiting()
    visit.wait_for("#pulse.live")
    assert "No job runs or waits." in visit.page.inner_text("#jobs")
    visit.page.route("**/status.json", busy_in)
    visit.wait_for_words("And 7 more.")
    rows = visit.page.locator("#jobs tbody tr").all_inner_texts()
    module = f"{'b' * 16}\N{HORIZONTAL ELLIPSIS}"
    assert [" ".join(row.split()) for row in rows] == [
        f"{module} {ENGINE} compiles 31 s 1 GiB 2 team 5ff1",
        f"{ENGINE} waits 3 s \N{EN DASH} 1 default 5ff2",
    ]
    assert visit.wrong == []
    visit.page.unroute("**/status.json")


def test_words(visiting: Visiting) -> None:
    visit = visiting()
    for call, words in {
        "[0, 1023, 1536, 97 * 2 ** 20, 2 ** 40].map(size)": "0 B|1,023 B|1.5 KiB|97 MiB|1 TiB",
        "[0, 4e-6, 0.34, 30, 95].map(duration)": "0 s|4 µs|340 ms|30 s|1 min 35 s",
        "[3720, 2e5].map(duration)": "1 h 2 min|2 days",
        "[0, 99999, 123456, 1.2e6, 3e9, 4e12].map(count)": "0|99,999|123 k|1.2 M|3 G|4,000 G",
        "[0, 0.4, 12].map(rate)": "0/s|0.4/s|12/s",
        "[0, 0.0001, 0.5, 0.99999, 1].map(percent)": "0 %|0.1 %|50.0 %|99.9 %|100 %",
        "[plain('a\\u202eb\\0c\\nd')]": "a\ufffdb\ufffdc\ufffdd",
    }.items():
        assert visit.page.evaluate(call) == words.split("|")


@pytest.mark.parametrize("width", [320, 768, 1280])
def test_it_fits_any_screen(visiting: Visiting, width: int) -> None:
    visit = visiting(width=width)
    visit.wait_for("#pulse.live")
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    assert visit.page.evaluate(BEYOND, width) == []
    assert visit.page.evaluate(SMALL, LEAST_TEXT) == []
    assert visit.wrong == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_its_text_can_be_read(visiting: Visiting, dark: bool) -> None:
    """Contrast as WCAG 2.2 asks for: 4.5 for text, 3 for what charts are drawn in."""
    visit = visiting(dark=dark)
    visit.wait_for("#pulse.live")
    found = visit.page.evaluate(CONTRASTS)
    assert found["ground"] < 0.1 if dark else found["ground"] > 0.8
    assert found["texts"] > 50
    assert found["colours"] >= 5
    assert found["unreadable"] == []


def test_a_person_gives_a_token_as_password(browser: Browser, needs: Needs, tmp_path: Path) -> None:
    """A browser cannot send a token by itself."""
    state = fresh_state(tmp_path / "state", engines=ONE_ENGINE)
    token = add_token(state, "ada", "metrics")
    with Daemon(state) as guarded, contextlib.ExitStack() as stack:
        with pytest.raises(PlaywrightError, match="ERR_INVALID_AUTH_CREDENTIALS"):
            Visit(browser, guarded.admin_url)
        visit = Visit(browser, guarded.admin_url, password=token)
        stack.callback(visit.close)
        visit.wait_for("#pulse.live")
        with visit.page.expect_response("**/status.json") as answered:
            pass
        assert answered.value.status == 200
