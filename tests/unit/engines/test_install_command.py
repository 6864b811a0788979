"""What a command of an installation is run with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from wasmkilnd.engines.install.command import run

ASK = "import os, pathlib; print(pathlib.Path.home())"


def test_a_user_without_a_home_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pip ends with a traceback where it finds none: a number without an entry in passwd."""

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("HOME")
    assert run([sys.executable, "-c", ASK]).strip() == "/nonexistent"


def test_home_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run([sys.executable, "-c", ASK]).strip() == str(tmp_path)
