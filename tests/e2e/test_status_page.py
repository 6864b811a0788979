"""What the status page tells of calls: which of them, and what became of them."""

from __future__ import annotations

import hashlib
import itertools
import re
import urllib.request

import pytest
from wasmkiln import Client, ModuleInvalid

from tests.e2e.daemon import Daemon
from tests.e2e.processes import eventually
from tests.e2e.wasm import constant

ENGINE = "wasmtime-50.0.1"
_tags = itertools.count(510_000)
_ROW = re.compile(r'title="([^"]*)">.*?</tr>', re.DOTALL)


def rows_of(daemon: Daemon, module: bytes) -> list[str]:
    """Return the words of each row about a module, the newest first."""
    with urllib.request.urlopen(f"{daemon.admin_url}/status/live", timeout=60) as page:
        text = page.read().decode()
    sha256 = hashlib.sha256(module).hexdigest()
    rows = [found[0] for found in _ROW.finditer(text) if found[1] == sha256]
    return [" ".join(re.sub(r"<[^>]+>", " ", f"<{row}").split()) for row in rows]


def told(daemon: Daemon, module: bytes, *words: str) -> None:
    """Wait until the newest row about a module has these words: a call is told after its answer."""
    eventually(
        lambda: all(word in (rows_of(daemon, module) or [""])[0] for word in words),
        f"the page does not tell of {words}",
    )


def test_a_compile_is_told_and_a_hit_is_not(daemon: Daemon, client: Client) -> None:
    module = constant(next(_tags))
    client.compile(module, engine=ENGINE)
    told(daemon, module, ENGINE, "ok", "compiled")
    for _ in range(3):
        client.compile(module, engine=ENGINE)
    # The client asks by digest first, which is no failure either.
    assert len(rows_of(daemon, module)) == 1


def test_a_failure_is_told_with_its_reason_and_how_often_it_came(
    daemon: Daemon, client: Client
) -> None:
    module = b"\0asm\1\0\0\0" + next(_tags).to_bytes(8, "little")
    for _ in range(2):
        with pytest.raises(ModuleInvalid):
            client.compile(module, engine=ENGINE)
    told(daemon, module, ENGINE, "failed", "2 times", "MODULE_INVALID")
    assert len(rows_of(daemon, module)) == 1


def test_a_compile_that_no_caller_waits_for_is_told(daemon: Daemon, client: Client) -> None:
    module = constant(next(_tags))
    client.compile(module, engine=ENGINE, accept_fast=True)
    eventually(
        lambda: len(rows_of(daemon, module)) == 1 and "2 times" in rows_of(daemon, module)[0],
        "the optimised compile behind the fast one is not told",
    )
