"""Clients of both kinds, the command, and the servers that they call."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result
from wasmkiln import AsyncClient, Client
from wasmkiln.cli.app import app

from tests.lying.server import LyingServer, lying_server
from tests.unit.client.fake_daemon import FakeDaemon, Refusal, fake_daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def daemon() -> Iterator[FakeDaemon]:
    """A FakeDaemon that listens on `daemon.address`."""
    with fake_daemon() as fake:
        yield fake


class Awaited:
    """An AsyncClient whose methods are called like a Client's."""

    def __init__(self, runner: asyncio.Runner, *args: Any, **kwargs: Any) -> None:
        self._runner = runner
        self._client = AsyncClient(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            async def wait() -> Any:
                return await method(*args, **kwargs)

            return self._runner.run(wait())

        return call


@pytest.fixture(params=["Client", "AsyncClient"])
def make_client(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes clients of one kind, then of the other, all called without await."""
    made: list[Any] = []
    with asyncio.Runner() as runner:

        def make(*args: Any, **kwargs: Any) -> Any:
            is_sync = request.param == "Client"
            made.append(Client(*args, **kwargs) if is_sync else Awaited(runner, *args, **kwargs))
            return made[-1]

        yield make
        for client in made:
            client.close()


@pytest.fixture
def client(daemon: FakeDaemon, make_client: Callable[..., Any]) -> Any:
    """A client of each kind, connected to the daemon."""
    return make_client(daemon.address, timeout_s=10)


@pytest.fixture
def refusal() -> type[Refusal]:
    """The class Refusal."""
    return Refusal


@pytest.fixture(scope="module")
def server() -> Iterator[LyingServer]:
    """A LyingServer for all tests of a file."""
    with lying_server() as liar:
        yield liar


@pytest.fixture
def invoke(
    server: LyingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Run the command in an empty folder, against the LyingServer, which is honest again."""
    server.answers.clear()
    server.calls.clear()
    monkeypatch.setenv("WASMKILN_ADDRESS", server.address)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, arguments)
