"""Fixtures of the polyglot tests: the daemons, and folders for what languages build."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.e2e.daemon import ONE_ENGINE, fresh_state
from tests.e2e.programs import installed_engines
from tests.polyglot import builds
from tests.polyglot.kiln import Kiln, Secure, running_kiln, running_secure
from tests.polyglot.toolchains import BUILT, LANGUAGES

Built = Callable[[str], Path]


class ByLanguage(LoadScopeScheduling):  # type: ignore[misc]
    """Sends all tests of a language to one process, so that it is built once."""

    def _split_scope(self, nodeid: str) -> str:
        words = [each.removesuffix("s") for each in re.split("[^a-z]+", nodeid)]
        return next((each for each in words if each in builds.PROGRAMS), "others")


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByLanguage:
    """Have two processes share the languages."""
    return ByLanguage(config, log)


@pytest.fixture(scope="session")
def kiln(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kiln]:
    """A daemon with all engines of the tests, a signing key, a host store and a small queue."""
    installed_engines()
    folder = tmp_path_factory.mktemp("kiln")
    with running_kiln(fresh_state(folder / "state", own_keys=True), folder / "work") as kiln:
        yield kiln
    assert kiln.daemon.process.returncode == 0


@pytest.fixture(scope="session")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    """A daemon with one engine (wasmer) that speaks TLS and asks for a token."""
    installed_engines()
    folder = tmp_path_factory.mktemp("secure")
    state = fresh_state(folder / "state", own_keys=True, engines=ONE_ENGINE)
    with running_secure(state, folder / "caller") as secure:
        yield secure
    assert secure.daemon.process.returncode == 0


@pytest.fixture(scope="session")
def built(worker_id: str) -> Built:
    """Return the folder where a language keeps what this process builds, once it can be built."""

    def folder_of(language: str) -> Path:
        LANGUAGES.demand(language)
        folder = BUILT / worker_id / language
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    return folder_of


@pytest.fixture(scope="module", params=builds.PROGRAMS)
def asks(request: pytest.FixtureRequest, built: Built) -> builds.Asks:
    """The program of each language."""
    return builds.PROGRAMS[request.param](built(request.param))
