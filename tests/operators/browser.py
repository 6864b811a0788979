"""A real browser that looks at the status page, and takes note of what goes wrong."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, sync_playwright

_ARGUMENTS = [
    # A sandbox of its own needs namespaces that not every machine grants; as root it refuses.
    "--no-sandbox",
    # Containers have 64 MiB of shared memory.
    "--disable-dev-shm-usage",
    "--disable-background-networking",
]
PATIENCE_MS = 120_000


@contextlib.contextmanager
def browsing(program: Path) -> Iterator[Browser]:
    """Run a browser without a window."""
    environ: dict[str, str | float | bool] = {**os.environ, "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=_ARGUMENTS, env=environ, timeout=PATIENCE_MS
        )
        yield browser
        browser.close()


class Visit:
    """A page of the daemon in a tab of its own."""

    def __init__(
        self,
        browser: Browser,
        url: str,
        *,
        width: int = 1280,
        dark: bool = False,
        script: bool = True,
        password: str = "",
    ) -> None:
        """Open it. ``password`` is what a person enters when asked."""
        self._context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            java_script_enabled=script,
            http_credentials={"username": "ada", "password": password} if password else None,
        )
        self._context.set_default_timeout(PATIENCE_MS)
        self.page: Page = self._context.new_page()
        self.wrong: list[str] = []
        """Messages on the console, exceptions, failed and foreign requests."""
        self.requested: list[str] = []
        """The paths that the page asked for."""
        own = urlsplit(url).netloc
        self.page.on("console", lambda message: self.wrong.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.wrong.append(f"exception: {error}"))
        self.page.on("requestfailed", lambda request: self.wrong.append(f"failed: {request.url}"))
        self.page.on("request", lambda request: self._note(request.url, own))
        self.page.goto(url)

    def _note(self, url: str, own: str) -> None:
        parts = urlsplit(url)
        self.requested.append(parts.path)
        if parts.netloc != own:
            self.wrong.append(f"foreign: {url}")

    def wait_for(self, selector: str) -> None:
        """Wait until there is an element of this kind, seen or not."""
        self.page.locator(selector).first.wait_for(state="attached")

    def wait_for_words(self, words: str) -> None:
        """Wait until the page holds these words."""
        self.page.get_by_text(words).first.wait_for()

    def close(self) -> None:
        """Close the tab."""
        self._context.close()
