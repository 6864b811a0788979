"""What differs between two configurations, told without secrets."""

from __future__ import annotations

import re
from pathlib import Path

from wasmkilnd.settings import Settings, is_live
from wasmkilnd.settings_loader import changes, load

HOME = {"HOME": "/home/kiln"}


def settings(**environ: str) -> Settings:
    return load({}, {**HOME, **environ}).settings


def test_only_what_differs_and_as_a_person_writes_it() -> None:
    old = settings(WASMKILN_MEMORY_BYTES="64MiB", WASMKILN_WORKERS="2")
    new = settings(WASMKILN_MEMORY_BYTES="1GiB", WASMKILN_WORKERS="3")
    assert changes(old, old) == []
    found = [(each.field, each.old, each.new, each.live) for each in changes(old, new)]
    assert found == [("memory_bytes", "64MiB", "1GiB", True), ("workers", 2, 3, False)]


def test_secrets_are_compared_and_never_shown() -> None:
    old = settings(
        WASMKILN_REDIS_URL="redis://me:hunter2@host", WASMKILN_SIGNING_KEY="c2VjcmV0MQ=="
    )
    new = settings(
        WASMKILN_REDIS_URL="redis://me:hunter3@host", WASMKILN_SIGNING_KEY="c2VjcmV0Mg=="
    )
    found = changes(old, new)
    assert [each.field for each in found] == ["signing_key", "redis_url"]
    told = repr(found)
    for secret in ("hunter", "c2VjcmV0"):
        assert secret not in told


def test_the_documentation_names_all_that_needs_a_restart() -> None:
    page = (Path(__file__).parents[3] / "docs" / "how-to" / "install.md").read_text()
    told = page.partition("- **Needs a restart**")[2].partition("The old value")[0]
    assert set(re.findall(r"`(\w+)`", told)) == {
        field for field in Settings.model_fields if not is_live(field)
    }
