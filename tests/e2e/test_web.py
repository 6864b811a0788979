"""The applications of docs/how-to/web.md serve modules, by ASGI and by WSGI, as printed."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.daemon import Daemon
from tests.e2e.programs import ROOT
from tests.e2e.wasm import adder

PAGE = ROOT / "docs" / "how-to" / "web.md"
ASGI, FLASK = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(emptied: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the module, where an application finds the daemon."""
    monkeypatch.setenv("WASMKILN_ADDRESS", emptied.address)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "add.wasm").write_bytes(adder(0))
    return tmp_path


def application(program: str) -> Any:
    names: dict[str, Any] = {"__name__": "app"}
    exec(compile(program, "app.py", "exec"), names)
    return names["app"]


@pytest.mark.usefixtures("folder")
async def test_an_asgi_application_opens_a_client_in_its_lifespan() -> None:
    app, state = application(ASGI), dict[str, Any]()
    arriving, sent = asyncio.Queue[Any](), asyncio.Queue[Any]()
    life = asyncio.create_task(app({"type": "lifespan", "state": state}, arriving.get, sent.put))
    arriving.put_nowait({"type": "lifespan.startup"})
    assert await sent.get() == {"type": "lifespan.startup.complete"}
    for _ in range(2):
        await app({"type": "http", "state": state}, arriving.get, sent.put)
        assert (await sent.get())["status"] == 200
        assert (await sent.get())["body"] == b"5"
    arriving.put_nowait({"type": "lifespan.shutdown"})
    assert await sent.get() == {"type": "lifespan.shutdown.complete"}
    await life


@pytest.mark.usefixtures("folder")
def test_a_flask_application_keeps_one_client() -> None:
    app = application(FLASK)
    with app.test_client() as browser:
        answers = [browser.get(f"/add/{n}/40").text for n in (1, 2)]
    assert answers == ["41", "42"]
