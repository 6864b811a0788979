"""Fixtures of the tests for operators: a daemon to look at, and the programs that look at it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from wasmkiln import Client

from tests.e2e.daemon import TWO_ENGINES, Daemon, fresh_state
from tests.e2e.programs import installed_engines
from tests.operators.toolchains import TOOLS

Needs = Callable[[str], Path]
LONGEST_FIRST = ("test_image", "test_wheel", "test_prometheus", "test_systemd")
"""Files that take more than a minute: begun last, one would run alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest; the rest stay in order."""
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(scope="session")
def needs() -> Needs:
    """Return where a program is; skip the test, or fail it, where it is missing."""

    def path_of(program: str) -> Path:
        TOOLS.demand(program)
        path = shutil.which(program)
        assert path, f"no program is called {program}"
        return Path(path)

    return path_of


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with two engines that all tests may call, and none may harm."""
    installed_engines()
    state = fresh_state(tmp_path_factory.mktemp("operated") / "state", engines=TWO_ENGINES)
    with Daemon(state) as shared:
        yield shared
    assert shared.process.returncode == 0


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    """A client of the shared daemon."""
    with daemon.client() as one:
        yield one
