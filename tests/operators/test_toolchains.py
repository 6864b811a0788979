"""A missing program is a skip with its reason, or a failure where all must be there."""

from __future__ import annotations

import pytest

from tests.toolchains import Toolchains

_TABLE = Toolchains(
    {
        "shell": {"sh": "dash"},
        "nothing": {"no-such-program": "no-such-package", "/no/such/file": "another"},
    },
    "NEEDS_OF_A_TEST",
)


def test_what_is_there_is_not_missing() -> None:
    """A program on PATH needs no package."""
    assert _TABLE.lacks("shell") == ""
    assert _TABLE.install(["shell"]) == ""
    _TABLE.demand("shell")


def test_a_missing_program_skips_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason names what is missing and the packages that have it."""
    monkeypatch.delenv("NEEDS_OF_A_TEST", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"missing no-such-program, /no/such/file; apt"):
        _TABLE.demand("nothing")


def test_a_missing_program_fails_where_all_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in CI."""
    monkeypatch.setenv("NEEDS_OF_A_TEST", "all")
    with pytest.raises(pytest.fail.Exception, match="apt-get install another no-such-package"):
        _TABLE.demand("nothing")


@pytest.mark.parametrize(
    ("user", "path", "words"),
    [
        (0, "/nowhere", "this system has no apt-get; install them in its own way"),
        (1000, "", "only root can; run: sudo apt-get install another no-such-package"),
    ],
)
def test_what_cannot_be_installed_is_said(
    monkeypatch: pytest.MonkeyPatch, user: int, path: str, words: str
) -> None:
    """Without root or Debian, a sentence says what to do."""
    monkeypatch.setattr("os.geteuid", lambda: user)
    monkeypatch.setattr(
        "shutil.which", lambda name: None if path else f"/bin/{name}" if name == "apt-get" else None
    )
    assert _TABLE.install(["nothing"]).endswith(words)


def test_an_unknown_toolchain_is_refused() -> None:
    """A typing error in a command does not install nothing in silence."""
    assert _TABLE.install(["chrome"]) == "cannot install chrome: choose of shell, nothing"
