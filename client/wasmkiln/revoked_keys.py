"""Revoked keys: whoever trusted them refuses all that they ever signed.

A folder `revoked/` holds a file `<key id>.json` for each, beside the trusted keys or in their
folder. Files of before 0.7 may name a date, `since_ms`: the key counts as revoked whatever the
date. The daemon and the client share this module.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

FOLDER = "revoked"

_MAX_FILE_BYTES = 4096
_KEY_ID = re.compile(r"[0-9a-f]{64}")


def write_revocation(key_id: str) -> bytes:
    """Return the text of a file that revokes a key."""
    # Daemons and clients before 0.7 refuse a file without a date; 0 is none to them.
    return json.dumps({"key_id": key_id, "since_ms": 0}).encode() + b"\n"


def read_revocations(folder: Path) -> frozenset[str]:
    """Return the ids that the files `*.json` of a folder revoke; none if there is no such folder.

    Raise ValueError for a file that is no revocation, and OSError for one that cannot be read.
    """
    return frozenset(_revoked_by(file) for file in folder.glob("*.json"))


def _revoked_by(file: Path) -> str:
    with file.open("rb") as opened:
        text = opened.read(_MAX_FILE_BYTES)
    try:
        key_id = json.loads(text)["key_id"]
    except (ValueError, LookupError, TypeError, RecursionError):
        key_id = None
    if not isinstance(key_id, str) or not _KEY_ID.fullmatch(key_id):
        raise ValueError(f"cannot read {file}: it does not say which key is revoked, as key_id")
    return key_id
