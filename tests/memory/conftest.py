"""Engines for the tests of memory."""

from __future__ import annotations

import pytest

from tests.e2e.programs import Installed, installed_engines


@pytest.fixture(scope="session")
def engines() -> Installed:
    """The engines that tests use."""
    return installed_engines()
