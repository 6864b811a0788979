"""Upstash's REST protocol, which carries Redis commands over HTTPS.

The library ``upstash-redis`` is not used: it sends commands as JSON and decodes replies as
UTF-8, so it cannot carry the bytes of an artifact either way, and it has no time-outs. The
protocol itself can: a binary argument is the body of a request, and replies come in base64.
See https://upstash.com/docs/redis/features/restapi.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any
from urllib.parse import quote

import aiohttp
from redis.exceptions import (
    AuthenticationError,
    DataError,
    InvalidResponse,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from yarl import URL

from wasmkilnd.cache.redis.replies import most_of
from wasmkilnd.cache.redis.server import Command, usage_of, without_errors
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import TierUsage

_SCAN_COUNT = 1000
_USAGE_AGE_S = 300.0
# JSON punctuation beside that of array elements: an error's text may contain some.
_JSON_ELEMENTS = 200
_SYNC_TOKEN = "Upstash-Sync-Token"  # noqa: S105 - the name of a header
# Below this, handing a reply to a thread costs more than parsing it.
_INLINE_BYTES = 64 * 1024

_FLAGS = ("NX", "XX", "GET", "KEEPTTL")
_REFUSALS: dict[str, type[ResponseError | AuthenticationError]] = {
    "NOPERM": NoPermissionError,
    "OOM": OutOfMemoryError,
    "READONLY": ReadOnlyError,
    "WRONGPASS": AuthenticationError,
    "NOAUTH": AuthenticationError,
}


class UpstashRestServer:
    """The database at ``url``; each request carries the token that ``token`` returns."""

    is_one_place = True

    def __init__(
        self,
        url: str,
        token: Callable[[], str],
        *,
        timeout_s: float,
        connect_timeout_s: float,
        max_connections: int,
        tls: ssl.SSLContext | bool = True,
    ) -> None:
        self._url = url.rstrip("/")
        self._token = token
        self._tls = tls
        self._max_connections = max_connections
        self._timeout = aiohttp.ClientTimeout(
            total=None, connect=timeout_s, sock_connect=connect_timeout_s, sock_read=timeout_s
        )
        self._session: aiohttp.ClientSession | None = None
        self._sync_token = ""
        self._usage: TierUsage | None = None
        self._usage_at = 0.0

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """As RedisServer: one request, but one for each command with a binary argument."""
        answers: list[Any] = []
        for is_text, group in itertools.groupby(map(_texts, commands), key=_is_text):
            if is_text:
                answers += await self._pipeline(list(group))
            else:
                answers += [await self._with_body(command) for command in group]
        return without_errors(answers)

    async def scan(self, pattern: bytes) -> AsyncIterator[list[bytes]]:
        """As RedisServer."""
        cursor: bytes | int = 0
        while True:
            [answer] = await self.run(
                [("SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN_COUNT)],
            )
            cursor, keys = answer
            yield keys
            if int(cursor) == 0:
                return

    async def usage(self) -> TierUsage:
        """As RedisServer, but up to _USAGE_AGE_S old: every request costs money."""
        if self._usage is None or time.monotonic() - self._usage_at > _USAGE_AGE_S:
            replies = await self._pipeline([["DBSIZE"], ["INFO", "memory"], ["INFO", "stats"]])
            entries, memory, stats = (None if isinstance(it, Exception) else it for it in replies)
            self._usage = usage_of(entries, _info(memory), _info(stats))
            self._usage_at = time.monotonic()
        return self._usage

    async def probe(self) -> None:
        """As RedisServer."""
        await self.close()
        # A token without permission to PING was answered all the same.
        with contextlib.suppress(NoPermissionError):
            await self.run([("PING",)])

    async def close(self) -> None:
        """As RedisServer."""
        session, self._session = self._session, None
        if session is not None:
            with contextlib.suppress(Exception):
                await session.close()

    async def _pipeline(self, commands: list[list[Any]]) -> list[Any]:
        if len(commands) == 1:
            return [await self._post("", json.dumps(commands[0]).encode(), _reply, commands)]
        body = json.dumps(commands).encode()
        answers: list[Any] = await self._post("/pipeline", body, _replies, commands)
        if len(answers) != len(commands):
            raise InvalidResponse("not as many answers as commands")
        return answers

    async def _with_body(self, command: list[Any]) -> Any:
        """Send a command with its one binary argument as the body and the rest as the query."""
        at = next(index for index, part in enumerate(command) if isinstance(part, bytes))
        before, body, after = command[:at], command[at], command[at + 1 :]
        if any(isinstance(part, bytes) for part in after):
            raise DataError("REST cannot carry a command with two binary arguments")
        path = "".join(f"/{quote(str(part), safe='')}" for part in before)
        query = _query(after)
        return await self._post(f"{path}?{query}" if query else path, body, _reply, [command])

    async def _post(
        self, path: str, body: bytes, read: Callable[[Any], Any], commands: Sequence[list[Any]]
    ) -> Any:
        headers = {
            "Authorization": f"Bearer {self._token()}",
            "Upstash-Encoding": "base64",
            # A few compressed bytes can become any number of bytes.
            "Accept-Encoding": "identity",
        }
        if self._sync_token:
            headers[_SYNC_TOKEN] = self._sync_token  # Reads then see our own writes.
        # Redirects are not followed: they would give the token to another host.
        url = URL(f"{self._url}{path}", encoded=True)
        async with self._opened().post(
            url, data=body, headers=headers, allow_redirects=False
        ) as response:
            self._sync_token = response.headers.get(_SYNC_TOKEN, self._sync_token)
            _check(response.status)
            answer = await _read_at_most(response, commands)
        if len(answer) < _INLINE_BYTES:
            return read(_parsed(answer))
        return await asyncio.to_thread(lambda: read(_parsed(answer)))

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            connector = aiohttp.TCPConnector(limit=self._max_connections, ssl=self._tls)
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=self._timeout, auto_decompress=False
            )
        return self._session


async def _read_at_most(
    response: aiohttp.ClientResponse, commands: Sequence[list[Any]]
) -> bytearray:
    """Return the body. Raises InvalidResponse if it has more than ``commands`` ask for."""
    most = [most_of(command) for command in commands]
    # Base64 makes four bytes of three, and JSON adds its own to each.
    most_bytes = sum(size_bytes * 3 // 2 for size_bytes, _ in most)
    most_elements = sum(_JSON_ELEMENTS + elements for _, elements in most)
    answer = bytearray()
    if (response.content_length or 0) > most_bytes:
        raise InvalidResponse("more than was asked for")
    async for part in response.content.iter_any():
        answer += part
        if len(answer) > most_bytes:
            raise InvalidResponse("more than was asked for")
    # Each of these characters makes an object, which is far larger.
    if sum(map(answer.count, (b",", b"[", b"{"))) > most_elements:
        raise InvalidResponse("an answer of more elements than were asked for")
    return answer


def _texts(command: Command) -> list[Any]:
    """Return ``command`` with all bytes that are UTF-8 decoded, since JSON can carry text."""
    return [_text(part) for part in command]


def _text(part: bytes | str | int) -> bytes | str | int:
    if not isinstance(part, bytes):
        return part
    try:
        return part.decode()
    except UnicodeDecodeError:
        return part


def _is_text(command: list[Any]) -> bool:
    return not any(isinstance(part, bytes) for part in command)


def _query(after: Sequence[Any]) -> str:
    """Return options like ``EX 60 NX`` as a query."""
    options = []
    words = iter(after)
    for word in words:
        # A flag has no value, not even an empty one.
        value = "" if str(word).upper() in _FLAGS else f"={quote(str(next(words)), safe='')}"
        options.append(f"{word}{value}")
    return "&".join(options)


def _check(status: int) -> None:
    if status in (401, 403):
        raise AuthenticationError("the token is refused")
    if status == 429:
        raise TierUnavailable("Redis over REST refuses: too many requests (HTTP status 429)")
    if status not in (200, 400):  # 400 carries the error that Redis returned.
        raise TierUnavailable(f"Redis over REST fails with HTTP status {status}")


def _parsed(answer: bytes | bytearray) -> Any:
    try:
        return json.loads(answer)
    except (ValueError, RecursionError):
        raise InvalidResponse("no JSON") from None


def _replies(answers: Any) -> list[Any]:
    if isinstance(answers, dict):
        raise _reply(answers)
    return [_reply(answer) for answer in answers]


def _reply(answer: Any) -> Any:
    """Read ``{"result": …}``, or make the error that ``{"error": …}`` holds."""
    if "error" in answer:
        text = str(answer["error"])
        return _REFUSALS.get(text.partition(" ")[0], ResponseError)(text)
    return _decoded(answer["result"])


def _decoded(result: Any) -> Any:
    if isinstance(result, str):
        # The one string that is not encoded; no base64 is this short.
        return b"OK" if result == "OK" else base64.b64decode(result, validate=True)
    if isinstance(result, list):
        return [_decoded(each) for each in result]
    return result


def _info(answer: Any) -> dict[str, int]:
    """Read the whole numbers of an answer to INFO."""
    lines = bytes(answer or b"").decode(errors="replace").splitlines()
    pairs = (line.partition(":") for line in lines)
    return {name: int(value) for name, _, value in pairs if value.isascii() and value.isdigit()}
