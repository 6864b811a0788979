"""Who gets the banner."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from wasmkilnd.app import is_banner_wanted
from wasmkilnd.settings import Settings


@pytest.mark.parametrize(
    ("settings", "terminal", "wanted"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"log_format": "text"}, False, True),
        ({"log_format": "json"}, False, False),
        ({"log_format": "json"}, True, True),
    ],
)
def test_it_gets_between_no_lines_of_json(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], terminal: bool, wanted: bool
) -> None:
    monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda: terminal))
    assert is_banner_wanted(Settings(state_dir=Path("/x"), **settings)) is wanted


def test_a_daemon_without_streams_prints_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    assert not is_banner_wanted(Settings(state_dir=Path("/x"), log_format="text"))
