"""Who gets the banner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from wasmkilnd.run import is_banner_wanted
from wasmkilnd.settings import Settings


@pytest.mark.parametrize(
    ("settings", "out", "err", "wanted"),
    [
        ({}, True, True, True),
        ({}, True, False, True),
        ({}, False, True, True),
        ({}, False, False, False),
        ({"log_format": "text"}, False, False, True),
        ({"log_format": "json"}, False, True, False),
        ({"log_format": "json"}, True, True, True),
    ],
)
def test_it_gets_between_no_lines_of_json(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], out: bool, err: bool, wanted: bool
) -> None:
    class Stream:
        def __init__(self, terminal: bool) -> None:
            self.isatty = lambda: terminal

    monkeypatch.setattr("sys.stdout", Stream(out))
    monkeypatch.setattr("sys.stderr", Stream(err))
    assert is_banner_wanted(Settings(state_dir=Path("/x"), **settings)) is wanted


def test_a_daemon_without_streams_prints_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    assert not is_banner_wanted(Settings(state_dir=Path("/x"), log_format="text"))
