"""The status page in a real browser: it loads, follows the daemon, and reads well on any screen."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser
from playwright.sync_api import Error as PlaywrightError
from wasmkiln import Client, WasmkilnError

from tests.e2e.bearers import add_token
from tests.e2e.daemon import ONE_ENGINE, Daemon, fresh_state
from tests.e2e.wasm import constant
from tests.operators.browser import Visit, browsing
from tests.operators.conftest import Needs
from tests.operators.page_looks import BEYOND, CONTRASTS, SMALL

ENGINE = "wasmtime-50.0.1"
SECTIONS = ["state", "figures", "charts", "tiers", "engines", "quarantine", "recent"]
# The smallest text that may be on the page, in pixels.
LEAST_TEXT = 12
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

        def visit(path: str = "/", **how: object) -> Visit:
            opened = Visit(browser, daemon.admin_url + path, **how)  # type: ignore[arg-type]
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
    assert visit.wrong == []


def test_it_follows_the_daemon_while_modules_are_compiled(
    visiting: Visiting, client: Client
) -> None:
    visit = visiting()
    visit.page.evaluate("window.loadedOnce = true")
    for _ in range(3):
        artifact = client.compile(constant(next(_numbers)), engine=ENGINE)
        visit.wait_for_words(artifact.header.module_sha256[:16])
    visit.wait_for("#chart-origins .area.c5[d*=v]")
    # All of that without loading the page again, nor anything but its live part.
    assert visit.page.evaluate("window.loadedOnce")
    assert visit.requested.count("/") == 1
    assert "/status/live" in visit.requested
    assert visit.wrong == []


def test_what_a_caller_sends_is_text(visiting: Visiting, client: Client) -> None:
    """An engine's name that is markup: neither the page nor its script takes it for that."""
    hostile = "<img src=/metrics onerror=alert(1)>"
    visit = visiting()
    with pytest.raises(WasmkilnError):
        client.compile(constant(next(_numbers)), engine=hostile)
    visit.wait_for_words(hostile)
    assert visiting().page.get_by_text(hostile).count() == 1
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
    visit.page.route("**/status/live", lambda route: route.abort())
    visit.wait_for("#pulse.lost")
    assert visit.page.inner_text("#pulse").startswith("no answer for ")
    visit.page.unroute("**/status/live")
    visit.wait_for("#pulse.live")


def test_without_scripts_it_loads_itself_again(visiting: Visiting) -> None:
    visit = visiting(script=False)
    assert visit.page.locator("main > section").count() == len(SECTIONS)
    again = visit.page.locator("noscript meta[http-equiv=refresh]")
    assert again.get_attribute("content") == "10"
    assert visit.wrong == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_it_fits_any_screen(visiting: Visiting, width: int, dark: bool) -> None:
    visit = visiting(width=width, dark=dark)
    visit.wait_for("#pulse.live")
    page = visit.page
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width
    assert page.evaluate(BEYOND, width) == []
    assert page.evaluate(SMALL, LEAST_TEXT) == []
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
        visit.wait_for("main > section")
        with visit.page.expect_response("**/status/live") as answered:
            pass
        assert answered.value.status == 200


def test_a_screen_reader_finds_its_way(visiting: Visiting) -> None:
    page = visiting().page
    assert page.get_attribute("html", "lang") == "en"
    assert page.locator("h1").count() == 1
    for section in page.locator("main > section").all():
        label = section.get_attribute("aria-labelledby")
        assert section.locator(f"h2#{label}").count() == 1
    for picture in page.locator("svg").all():
        assert picture.get_attribute("role") == "img"
        assert picture.get_attribute("aria-label")
    for table in page.locator("table").all():
        assert table.locator("caption").text_content()
        assert table.locator("thead th[scope=col]").count() > 1
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(each => each.id)")
    assert len(ids) == len(set(ids))
