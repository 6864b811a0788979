"""Fixtures of the end-to-end tests: installed engines, and a daemon that tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from wasmkiln import Client

from tests.e2e.daemon import ONE_ENGINE, TWO_ENGINES, Daemon, fresh_state
from tests.e2e.processes import eventually, jobs_of
from tests.e2e.programs import Installed, installed_engines


@pytest.fixture(scope="session")
def engines() -> Installed:
    """The engines that tests use: wasmer, and wasmtime in two major versions."""
    return installed_engines()


@pytest.fixture
def state_dir(engines: Installed, tmp_path: Path) -> Path:
    """A state directory of the test's own, with two engines in it."""
    return fresh_state(tmp_path / "state", engines=TWO_ENGINES)


@pytest.fixture
def lean_state_dir(engines: Installed, tmp_path: Path) -> Path:
    """A state directory of the test's own, with wasmer alone, so that a daemon starts soon."""
    return fresh_state(tmp_path / "state", engines=ONE_ENGINE)


@pytest.fixture(scope="session")
def shared_daemon(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """See ``daemon``."""
    state = fresh_state(tmp_path_factory.mktemp("shared") / "state")
    # The largest modules of the corpus, and time for them on a machine that is busy; and as many
    # workers as by default.
    flags = ["--max-module-bytes", "12MiB", "--compile-timeout-s", "300", "--workers", "0"]
    with Daemon(state, flags) as shared:
        yield shared
    assert shared.process.returncode == 0


@pytest.fixture(scope="module")
def daemon(shared_daemon: Daemon) -> Iterator[Daemon]:
    """A daemon with default settings that all tests may call, and none may harm.

    A file's tests leave no job running: the daemon finishes what its callers have left, and the
    next file's tests would wait for its workers, for up to four times the limit of a compile.
    """
    yield shared_daemon
    eventually(lambda: not jobs_of(shared_daemon.pid), "a job was left to run", timeout_s=120)


@pytest.fixture(scope="module")
def emptied(daemon: Daemon) -> Daemon:
    """The shared daemon without the artifacts of other files' tests.

    Which files a process runs, and in what order, is left to chance: two files that compile the
    same module would see each other's artifacts, or not.
    """
    with daemon.client(timeout_s=120) as operator:
        operator.evict(all=True)
    return daemon


@pytest.fixture
def client(emptied: Daemon) -> Iterator[Client]:
    """A client of the shared daemon."""
    with emptied.client() as one:
        yield one
