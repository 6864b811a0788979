"""Every hand-written file of the daemon and the client is short."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.architecture.imports import CLIENT, SERVER, modules

MOST_LINES = 299


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=name)
        for package in (SERVER, CLIENT)
        for name, path in modules(package).items()
    ],
)
def test_a_file_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES
