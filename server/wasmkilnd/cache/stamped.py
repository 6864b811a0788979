"""Records that the daemons of a fleet share in Redis: a stamp, then the text that it signs.

Lists of pins and records of uses are such records. Other programs may write to the server, too. So
no more is read than a record may have, a key of another type is deleted, and a text counts only if
a trusted key signed it for this purpose and this name.
"""

from __future__ import annotations

from collections.abc import Sequence

from wasmkilnd.cache.redis_link import RedisLink
from wasmkilnd.errors import WrongType
from wasmkilnd.model import STAMP_BYTES
from wasmkilnd.signing.sealer import Sealer

MAX_BYTES = 2 * 1024**2

_WRITE_TIMEOUT_S = 10.0


def written(purpose: bytes, name: bytes, text: bytes, sealer: Sealer) -> bytes:
    """Return the bytes to store for ``text``."""
    return sealer.stamp(_message(purpose, name, text)) + text


def text_of(purpose: bytes, name: bytes, record: bytes, sealer: Sealer) -> bytes:
    """Return the text of a stored record; nothing if no trusted key signed it for ``name``."""
    stamp, text = record[:STAMP_BYTES], record[STAMP_BYTES:]
    if len(record) > MAX_BYTES or not text:
        return b""
    return b"" if sealer.check_stamp(_message(purpose, name, text), stamp) else text


async def fetch(
    link: RedisLink, names: Sequence[bytes], length: int = MAX_BYTES + 1
) -> list[bytes]:
    """Return the first bytes under each name, empty for none; delete what is of another type.

    Raises TierUnavailable.
    """
    try:
        return await link.run(*(("GETRANGE", name, 0, length - 1) for name in names))
    except WrongType:
        if len(names) == 1:
            await link.run(("UNLINK", names[0]))
            return [b""]
    return [found for name in names for found in await fetch(link, [name], length)]


async def store(
    link: RedisLink, name: bytes, record: bytes, ttl_s: int, *, if_free: bool = False
) -> bool:
    """Store a record; with ``if_free``, only where nothing is; return whether it is stored.

    Raises TierUnavailable.
    """
    condition = ("NX",) if if_free else ()
    command = ("SET", name, record, "EX", ttl_s, *condition)
    [stored] = await link.run(command, timeout_s=_WRITE_TIMEOUT_S)
    return stored is not None


def _message(purpose: bytes, name: bytes, text: bytes) -> bytes:
    return b"%b\0%b\0%b" % (purpose, name, text)
