"""Draw the pictures of the documentation: ``python -m tests.operators.pictures FOLDER``.

A daemon compiles and serves for a while, as in a small fleet, while a browser looks at its page.
"""

from __future__ import annotations

import contextlib
import math
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from wasmkiln import Client, WasmkilnError

from tests.e2e.daemon import TWO_ENGINES, Daemon, fresh_state
from tests.e2e.programs import installed_engines
from tests.e2e.wasm import constant
from tests.operators.browser import Visit, browsing
from tests.operators.toolchains import TOOLS

BUSY_S = 280.0
LARGEST_BYTES = 200_000
PICTURES = (
    ("light", 1120, 1010, False),
    ("dark", 1120, 1010, True),
    ("phone", 360, 780, True),
)


def main() -> None:
    """Draw them."""
    folder = Path(sys.argv[1])
    if why := TOOLS.lacks("chromium"):
        sys.exit(why)
    installed_engines()
    with (
        tempfile.TemporaryDirectory() as state,
        Daemon(fresh_state(Path(state) / "state", engines=TWO_ENGINES)) as daemon,
        browsing(Path(shutil.which("chromium") or "")) as browser,
    ):
        visits = {
            name: Visit(browser, daemon.admin_url, width=width, height=height, dark=dark)
            for name, width, height, dark in PICTURES
        }
        with daemon.client() as client:
            _use(client, BUSY_S)
        for name, visit in visits.items():
            visit.wait_for("#pulse.live")
            visit.page.evaluate("document.querySelector('h1 small').textContent = 'on kiln-1'")
            path = folder / f"status-page-{name}.png"
            visit.page.screenshot(path=path)
            visit.close()
            assert path.stat().st_size < LARGEST_BYTES, f"{path} is too large"


def _use(client: Client, seconds: float) -> None:
    """Call as services do: some modules often, new ones now and then, a broken one rarely."""
    chance = random.Random(7)
    begun, made = time.monotonic(), 1
    while (past := time.monotonic() - begun) < seconds:
        new = chance.random() < 0.04 + 0.35 * math.exp(-past / 40)
        made += new
        module = constant(made if new else chance.randint(1, made))
        engine = "wasmtime-50.0.1" if chance.random() < 0.8 else "wasmer-1.1.0"
        if chance.random() < 0.003:
            module = b"\0asm\1\0\0\0\x01\xff"
        with contextlib.suppress(WasmkilnError):
            client.compile(module, engine=engine)
        time.sleep(0.02 + 0.03 * (1 + math.sin(past / 25)))


if __name__ == "__main__":
    main()
