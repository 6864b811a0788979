"""Fixtures that a file of tests makes for itself: ``kiln = serving(ENGINE, flags=FLAGS)``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import pytest

from tests.e2e.daemon import Daemon, fresh_state
from tests.servers.redis_server import RedisServer, binary_of, redis_server


def serving(
    *engines: str, flags: Sequence[str] = (), kind: type[Daemon] = Daemon, **options: Any
) -> Any:
    """Return a fixture: a daemon that all tests of a file share, and that ends well."""

    @pytest.fixture(scope="module")
    def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
        state = fresh_state(tmp_path_factory.mktemp("kiln") / "state", engines=engines)
        with kind(state, flags, **options) as running:
            yield running
        assert running.process.returncode == 0
        assert "Traceback" not in running.log

    return daemon


def a_valkey(*settings: str, scope: Literal["function", "module"] = "function") -> Any:
    """Return a fixture: a Valkey of a test's own, or of a file's."""

    @pytest.fixture(scope=scope)
    def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
        folder = tmp_path_factory.mktemp("valkey")
        with redis_server(binary_of("valkey"), folder / "server", settings) as running:
            yield running

    return valkey
