"""What the status page tells of calls: which of them, and what became of them."""

from __future__ import annotations

import hashlib
import itertools
import json
import urllib.request
from typing import Any

import pytest
from wasmkiln import Client, ModuleInvalid

from tests.e2e.daemon import Daemon
from tests.e2e.processes import eventually
from tests.e2e.wasm import constant

ENGINE = "wasmtime-50.0.1"
_tags = itertools.count(510_000)


def rows_of(daemon: Daemon, module: bytes) -> list[dict[str, Any]]:
    """Return each recent compile of a module, the newest first."""
    with urllib.request.urlopen(f"{daemon.admin_url}/status.json", timeout=60) as page:
        told = json.load(page)
    sha256 = hashlib.sha256(module).hexdigest()
    return [each for each in told["recent"] if each["module"] == sha256]


def told(daemon: Daemon, module: bytes, **fields: object) -> None:
    """Wait until the newest row about a module has these: a call is told after its answer."""
    eventually(
        lambda: fields.items() <= (rows_of(daemon, module) or [{}])[0].items(),
        f"the page does not tell of {fields}",
    )


def test_a_compile_is_told_and_a_hit_is_not(daemon: Daemon, client: Client) -> None:
    module = constant(next(_tags))
    client.compile(module, engine=ENGINE)
    told(daemon, module, engine=ENGINE, origin="compiled", reason="", times=1)
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
    told(daemon, module, engine=ENGINE, origin="", reason="MODULE_INVALID", times=2)
    assert len(rows_of(daemon, module)) == 1


def test_a_compile_that_no_caller_waits_for_is_told(daemon: Daemon, client: Client) -> None:
    module = constant(next(_tags))
    client.compile(module, engine=ENGINE, accept_fast=True)
    eventually(
        lambda: [each["times"] for each in rows_of(daemon, module)] == [2],
        "the optimised compile behind the fast one is not told",
    )
