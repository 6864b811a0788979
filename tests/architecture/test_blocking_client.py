"""The blocking client is generated from the one for asyncio, and a stale copy is found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.blocking_client import CLIENT, CLIENT_RULES, FILES, Rule, blocking


@pytest.mark.parametrize(("written", "generated", "rules"), FILES)
def test_it_is_fresh(written: str, generated: str, rules: list[Rule]) -> None:
    ruff = Path(sys.executable).with_name("ruff")
    formatted = subprocess.run(
        [str(ruff), "format", "--stdin-filename", str(CLIENT / generated), "-"],
        input=blocking((CLIENT / written).read_text(), rules),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert formatted == (CLIENT / generated).read_text(), "run `make client`"


def test_a_rule_that_nothing_needs_is_found() -> None:
    source = (CLIENT / "aio.py").read_text()
    with pytest.raises(ValueError, match="remove the rule"):
        blocking(source.replace("is called in the event loop", "is called"), CLIENT_RULES)


def test_what_no_rule_covers_is_found() -> None:
    source = (CLIENT / "aio.py").read_text()
    with pytest.raises(ValueError, match="add a rule"):
        blocking(source + "import asyncio\n", CLIENT_RULES)
