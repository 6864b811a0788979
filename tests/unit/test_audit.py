"""`make audit` fails for a known vulnerability, and says "skipped" where there is no data."""

from __future__ import annotations

import json

from scripts.audit import verdict

CLEAN = {"name": "click", "version": "8.1.0", "vulns": []}
HOLED = {
    "name": "redis",
    "version": "4.5.0",
    "vulns": [{"id": "PYSEC-2023-45", "fix_versions": ["4.5.3", "4.4.3"], "aliases": []}],
}
UNKNOWN = {"name": "ours", "skip_reason": "Dependency not found"}


def of(*packages: object) -> tuple[str, int]:
    return verdict(json.dumps({"dependencies": packages, "fixes": []}), "")


def test_a_known_vulnerability_fails() -> None:
    words, code = of(CLEAN, HOLED)
    assert code == 1
    assert words == "audit: redis 4.5.0 has PYSEC-2023-45; mended in: 4.5.3, 4.4.3"


def test_none_passes_and_says_how_many_were_looked_up() -> None:
    assert of(CLEAN) == ("audit: 1 packages, no known vulnerability", 0)
    words, code = of(CLEAN, UNKNOWN)
    assert (words.splitlines()[0], code) == ("audit: there is no data for ours", 0)


def test_without_data_it_is_skipped() -> None:
    assert of(UNKNOWN, UNKNOWN) == ("audit: skipped", 0)
    gone = "requests.exceptions.ConnectionError: Max retries exceeded"
    assert verdict("", gone) == ("audit: skipped", 0)


def test_a_failure_of_the_tool_is_no_reason_to_skip() -> None:
    words, code = verdict("", "Traceback\nValueError: bad requirement")
    assert code == 1
    assert "ValueError: bad requirement" in words
    assert verdict("[]", "")[1] == 1
