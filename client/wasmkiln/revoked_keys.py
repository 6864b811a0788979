"""Revoked keys: which signatures of a key that was trusted count no more.

A key is revoked from a time on: what it signed at that time or later is refused, and what it
signed before is not. The time of a signature is the one that the signed statement names, so
whoever has the private key can date a forgery back: revoke a stolen key altogether. The daemon
and the client share this module.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

UTC = timezone.utc  # noqa: UP017 - Python 3.10 too
FOLDER = "revoked"
"""The folder of revocations, beside the trusted keys or in their folder."""

ALTOGETHER_MS = 0
"""Instead of a time: nothing that the key signed counts."""

MAX_MS = 1 << 52

_MAX_FILE_BYTES = 4096
_KEY_ID = re.compile(r"[0-9a-f]{64}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_ms(moment: datetime) -> int:
    """Return a moment in milliseconds since 1970. Without a time zone, it is in UTC."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    whole = aware - _EPOCH
    return (whole.days * 86_400 + whole.seconds) * 1000 + whole.microseconds // 1000


def shown(since_ms: int) -> str:
    """Return since when a key is revoked, in words."""
    if since_ms == ALTOGETHER_MS:
        return "altogether"
    try:
        return f"since {datetime.fromtimestamp(since_ms / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):
        return f"since {since_ms} ms"


def write_revocation(key_id: str, since_ms: int) -> bytes:
    """Return the text of a file that revokes a key."""
    said = {"key_id": key_id, "since_ms": since_ms}
    return json.dumps(said, sort_keys=True).encode() + b"\n"


def parse_revocation(text: str | bytes) -> tuple[str, int]:
    """Return the key's id, and the time from which on it is revoked. Raise ValueError."""
    try:
        said = json.loads(text)
        key_id, since_ms = said["key_id"], said["since_ms"]
    except (LookupError, TypeError, RecursionError) as error:
        raise ValueError("not a revocation") from error
    if not isinstance(key_id, str) or not _KEY_ID.fullmatch(key_id):
        raise ValueError("not a revocation: key_id is not 64 hex digits")
    if type(since_ms) is not int or not 0 <= since_ms < MAX_MS:
        raise ValueError("not a revocation: since_ms is not a time in milliseconds")
    return key_id, since_ms


def strictest(*several: Mapping[str, int]) -> dict[str, int]:
    """Return for each key the earliest time from which on it is revoked."""
    merged: dict[str, int] = {}
    for each in several:
        for key_id, since_ms in each.items():
            merged[key_id] = min(since_ms, merged.get(key_id, since_ms))
    return merged


def changed(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """Return what `after` revokes that `before` does not, or since another time."""
    return {key: since_ms for key, since_ms in after.items() if before.get(key) != since_ms}


def read_revocations(folder: Path) -> dict[str, int]:
    """Return what the files `*.json` of a folder revoke; nothing if there is no such folder.

    Raise ValueError for a file that is no revocation, and OSError for one that cannot be read.
    """
    found: list[dict[str, int]] = []
    for file in sorted(folder.glob("*.json")):
        with file.open("rb") as opened:
            text = opened.read(_MAX_FILE_BYTES)
        try:
            key_id, since_ms = parse_revocation(text)
        except ValueError as error:
            raise ValueError(f"cannot read {file}: {error}") from None
        found.append({key_id: since_ms})
    return strictest(*found)
