"""What a command of an installation is run with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from wasmkilnd.engines.install.command import EngineInstallError, run

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


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("ERROR: first\nERROR: no such package\nhint", "ERROR: no such package"),
        (
            "error: Failed to install cpython\n  cause: Hash mismatch for `cpython`\n\n"
            "         Expected:\n         00aa\n\n         Computed:\n         11bb",
            "cause: Hash mismatch for `cpython`",
        ),
        ("warning\nConnection refused", "Connection refused"),
    ],
)
def test_a_failure_is_told_in_the_line_that_says_most(said: str, told: str) -> None:
    script = f"import sys; sys.exit({said!r})"
    with pytest.raises(EngineInstallError) as caught:
        run([sys.executable, "-c", script])
    assert str(caught.value).endswith(f"failed with exit code 1: {told}")
