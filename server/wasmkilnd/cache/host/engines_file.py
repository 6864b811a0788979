"""``engines.json``: what the daemon serves, so that a client computes fingerprints by itself."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from wasmkiln.host_layout import ENGINES

from wasmkilnd.cache.host.disk import Disk
from wasmkilnd.cache.host.folders import admit, cannot, prepare
from wasmkilnd.cache.host.scratch import delete

_WRITE = os.O_WRONLY | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


def write_engines(disk: Disk, document: Mapping[str, object]) -> None:
    """Write the file aside and rename it into place. Raises TierUnavailable."""
    options = disk.options
    prepare(options)
    text = json.dumps(document, indent=2, allow_nan=False).encode() + b"\n"
    try:
        aside = disk.scratch.fresh()
        try:
            with os.fdopen(os.open(aside, _WRITE, 0o600), "wb") as file:
                file.write(text)
                file.flush()
                admit(file.fileno(), options.file_mode, options.group)
                os.fdatasync(file.fileno())
            aside.replace(options.directory / ENGINES)
        finally:
            delete(aside)
    except OSError as failure:
        raise cannot(f"write {ENGINES}", failure) from None
