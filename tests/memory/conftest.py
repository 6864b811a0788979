"""Engines for the tests of memory."""

from __future__ import annotations

import pytest
from wasmkilnd.engines.install.store import EngineStore

from tests.e2e.daemon import installed_engines


@pytest.fixture(scope="session")
def engines() -> EngineStore:
    """The engines that tests use."""
    return installed_engines()
