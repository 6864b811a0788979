"""`wasmkilnd cache` in this process, for tests of it on every tier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from wasmkilnd.cli import command
from wasmkilnd.commands.cache import BadValuesFound
from wasmkilnd.errors import CannotUse, TierUnavailable
from wasmkilnd.model import Artifact

from tests.contract.sealing import OURS, THEIRS, sealer
from tests.contract.values import artifact, module

SEALER, STRANGER = sealer(OURS), sealer(THEIRS)
MODULE = module(1)
WASMER = SEALER.seal(artifact(3, 100, "wasmer", of=MODULE))


class Command:
    """Runs `wasmkilnd cache` in this process."""

    def __init__(self, url: str, state: Path) -> None:
        self.environ = {
            "WASMKILN_REDIS_URL": url,
            "WASMKILN_STATE_DIR": str(state),
            "WASMKILN_TRUSTED_KEYS": OURS.public.hex,
        }

    def __call__(self, *words: str, **environ: str) -> Result:
        return CliRunner().invoke(
            command, ["cache", *words], env=self.environ | environ, standalone_mode=False
        )

    def good(self, *words: str) -> Result:
        """Run it, and see that it ended well."""
        result = self(*words)
        if result.exception:
            raise result.exception
        return result

    def rows(self, *words: str) -> list[dict[str, Any]]:
        """Return what `ls` lists."""
        return [json.loads(line) for line in self.good("ls", "--json", *words).stdout.splitlines()]

    def refusal(self, *words: str, **environ: str) -> str:
        """Run it, and return the one sentence why it did not do its work."""
        with pytest.raises((CannotUse, TierUnavailable)) as failure:
            raise self(*words, **environ).exception or AssertionError
        assert "\n" not in str(failure.value)
        return str(failure.value)

    def scrub(self, *words: str, **environ: str) -> tuple[dict[bytes, Any], dict[str, Any]]:
        """Scrub; return findings by name, and the summary."""
        result = self("scrub", "--json", *words, **environ)
        *findings, last = [json.loads(line) for line in result.stdout.splitlines()]
        summary = last["summary"]
        assert isinstance(result.exception, BadValuesFound if summary["bad"] else None.__class__)
        return {each["name"].encode(): each for each in findings}, summary


def removed(result: Result) -> dict[str, int]:
    gone: dict[str, int] = json.loads(result.stdout)["removed"]
    return gone


def row_of(what: Artifact, stored_bytes: int, expires_in_s: int | None) -> dict[str, Any]:
    """Return the row of an artifact of MODULE for wasmtime, which we signed."""
    return {
        "what": "artifact",
        "module": MODULE.sha256,
        "fingerprint": what.spec.fingerprint,
        "kind": "core",
        "engine": "wasmtime-1.0",
        "target": "x86_64-unknown-linux-gnu",
        "cpu": "baseline",
        "changed_settings": {},
        "raw_bytes": what.size_bytes,
        "stored_bytes": stored_bytes,
        "expires_in_s": expires_in_s,
        "finished_on": "2023-11-14T22:13:20Z",
        "signed_by": OURS.public.id,
        "trust": "trusted",
        "unreadable": None,
    }
