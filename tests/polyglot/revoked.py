"""A folder of trusted keys, as a daemon's key directory has it, that revokes one of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from wasmkiln import TrustedKeys

from tests.polyglot.kiln import Kiln


def folder_that_revokes(kiln: Kiln, folder: Path) -> Path:
    """Return a folder that trusts the daemon's key and another, beside which the first is revoked.

    Whoever takes the daemon's artifacts with it ignores revocations.
    """
    trusted, revoked = folder / "trusted", folder / "revoked"
    trusted.mkdir()
    revoked.mkdir()
    shutil.copy(kiln.key_file, trusted / "one.pem")
    shutil.copy(kiln.wrong_key_file, trusted / "two.pem")
    [key_id] = TrustedKeys.read(kiln.key_file)
    (revoked / f"{key_id}.json").write_text(json.dumps({"key_id": key_id, "since_ms": 0}))
    return trusted
