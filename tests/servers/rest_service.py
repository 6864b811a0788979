"""Upstash's REST protocol in front of a real server, in a thread of its own.

Written from https://upstash.com/docs/redis/features/restapi, not from our client: commands
in the path, in a JSON body or with a binary body as last argument and query parameters
after it, ``/pipeline``, base64 on demand, tokens, and the statuses and errors described there.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote_to_bytes

import hiredis
from aiohttp import web

from tests.servers.certificates import Certificates

_REQUEST_LIMIT_BYTES = 1_000_000
"""Of Upstash's plans that are free or paid by use."""


class RestService:
    """Translates for whoever has ``token``. ``refuse_with`` makes it answer that status."""

    def __init__(self, socket_path: str, token: str) -> None:
        self._socket_path = socket_path
        self._token = token
        self.refuse_with = 0
        self.requests: list[str] = []
        """The path of each, as it was sent."""

    def app(self) -> web.Application:
        """Return what serves it."""
        app = web.Application(client_max_size=_REQUEST_LIMIT_BYTES)
        app.router.add_route("*", "/{path:.*}", self._handle)
        return app

    async def _handle(self, request: web.Request) -> web.Response:
        self.requests.append(request.raw_path)
        if self.refuse_with:
            return web.Response(status=self.refuse_with, text="a page of a proxy")
        if request.method not in ("GET", "HEAD", "POST", "PUT"):
            return web.json_response({"error": "ERR method"}, status=405)
        authorization = request.headers.get("Authorization", "")
        token = request.query.get("_token") or authorization.removeprefix("Bearer ")
        if token != self._token:
            return web.json_response({"error": "WRONGPASS invalid token"}, status=401)
        encoded = request.headers.get("Upstash-Encoding") == "base64"
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            return web.json_response({"error": "ERR max request size exceeded"}, status=400)
        path, _, query = request.raw_path.partition("?")
        if path == "/pipeline":
            commands = [list(map(_bytes, command)) for command in json.loads(body)]
            answers = await self._ask(commands)
            return web.json_response([_result(answer, encoded) for answer in answers])
        if path == "/":
            command = list(map(_bytes, json.loads(body)))
        else:
            command = [unquote_to_bytes(part) for part in path[1:].split("/")]
            if request.method in ("POST", "PUT"):
                command.append(body)
            for option in query.split("&") if query else []:
                if not option.startswith("_token="):
                    command += map(unquote_to_bytes, option.split("=", 1))
        [answer] = await self._ask([command])
        result = _result(answer, encoded)
        return web.json_response(result, status=400 if "error" in result else 200)

    async def _ask(self, commands: Sequence[Sequence[bytes]]) -> list[Any]:
        reader, writer = await asyncio.open_unix_connection(self._socket_path)
        try:
            writer.write(b"".join(hiredis.pack_command(tuple(each)) for each in commands))
            parser = hiredis.Reader()
            answers: list[Any] = []
            while len(answers) < len(commands):
                read = await reader.read(1 << 20)
                if not read:
                    raise ConnectionError("the server hung up")
                parser.feed(read)
                while (answer := parser.gets()) is not False:
                    answers.append(answer)
            return answers
        finally:
            writer.close()


def _bytes(part: object) -> bytes:
    assert isinstance(part, str | int | float)
    return str(part).encode()


def _result(answer: Any, encoded: bool) -> dict[str, Any]:
    if isinstance(answer, hiredis.ReplyError):
        return {"error": str(answer)}
    return {"result": _written(answer, encoded)}


def _written(answer: Any, encoded: bool) -> Any:
    if isinstance(answer, list):
        return [_written(each, encoded) for each in answer]
    if not isinstance(answer, bytes):
        return answer
    if encoded:
        return "OK" if answer == b"OK" else base64.b64encode(answer).decode()
    return answer.decode(errors="replace")


@contextmanager
def serving(service: RestService, certificates: Certificates) -> Iterator[str]:
    """Serve over TLS; return the URL."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificates.cert_file, certificates.key_file)
    loop = asyncio.new_event_loop()
    started: list[int] = []
    ready, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        runner = web.AppRunner(service.app(), access_log=None, shutdown_timeout=0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        started.append(runner.addresses[0][1])
        ready.set()
        await stop.wait()
        await runner.cleanup()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(60)
        yield f"https://127.0.0.1:{started[0]}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
