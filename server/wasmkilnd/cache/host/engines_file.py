"""``engines.json``: what the daemon serves, so that a client computes fingerprints by itself.

Daemons that share the directory share the file: the last one that started or reloaded wrote it.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping

import structlog
from wasmkiln.host_layout import ENGINES

from wasmkilnd.cache.host.disk import Disk
from wasmkilnd.cache.host.folders import admit, cannot, check_ours, prepare
from wasmkilnd.cache.host.scratch import delete
from wasmkilnd.cache.value.rejected import ValueRejected

_WRITE = os.O_WRONLY | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_MAX_BYTES = 4 * 1024 * 1024

_log = structlog.get_logger("wasmkilnd.cache")


def write_engines(disk: Disk, document: Mapping[str, object]) -> None:
    """Write the file aside and rename it into place. Raises TierUnavailable."""
    options = disk.options
    prepare(options)
    text = json.dumps(document, indent=2, allow_nan=False).encode() + b"\n"
    place = options.directory / ENGINES
    try:
        aside = disk.scratch.fresh()
        try:
            with os.fdopen(os.open(aside, _WRITE, 0o600), "wb") as file:
                file.write(text)
                file.flush()
                admit(file.fileno(), options.file_mode, options.group)
                os.fdatasync(file.fileno())
            if place.is_dir() and not place.is_symlink():
                delete(place)
            aside.replace(place)
        finally:
            delete(aside)
    except OSError as failure:
        raise cannot(f"write {ENGINES}", failure) from None


def mend_engines(disk: Disk, document: Mapping[str, object]) -> None:
    """Write the file again if clients cannot use what is there. Raises TierUnavailable.

    What another daemon wrote stays, or two daemons would replace each other's by turns.
    """
    if why := _wrong(disk):
        write_engines(disk, document)
        _log.warning(f"{ENGINES} of the host store was written again", cause=why)


def _wrong(disk: Disk) -> str:
    """Return why no client can use the file; empty if a daemon of this user wrote it."""
    try:
        descriptor = os.open(disk.options.directory / ENGINES, _READ)
    except OSError as failure:
        return failure.strerror or str(failure)
    try:
        found = os.fstat(descriptor)
        check_ours(found, ENGINES)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            return "it is no regular file with one name"
        if not found.st_mode & stat.S_IRUSR:
            return "its owner may not read it"
        with open(descriptor, "rb", closefd=False) as file:
            document = json.loads(file.read(_MAX_BYTES))
    except ValueRejected as rejected:
        return rejected.why
    except (OSError, ValueError, RecursionError):
        return "it is damaged"
    finally:
        os.close(descriptor)
    is_document = isinstance(document, dict) and {"version", "engines"} <= document.keys()
    return "" if is_document else "it is damaged"
