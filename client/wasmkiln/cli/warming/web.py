"""HTTP to a registry: bounded in bytes and time, careful with redirects.

oras asks for its tokens through it, too. Answers are as long as their reader says, at most.
A redirect to another host or port takes no credentials along; nothing goes from https to http;
and plain http goes to this machine only, unless the caller says otherwise.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import requests
import requests.adapters
import urllib3

from wasmkiln._untrusted import quoted
from wasmkiln.cli.warming.reference import is_loopback
from wasmkiln.cli.warming.unusable import SourceUnusable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_CONNECT_S, _READ_S = 10.0, 20.0
_MOST_REDIRECTS = 5
# Connections that are kept open for the next request.
_MOST_KEPT = 100
_MOST_OF_ANSWER = 2**20
_PIECE = 2**18


# What it logs is no news to the command's user; what fails is an error.
logging.getLogger("urllib3").setLevel(logging.CRITICAL + 1)


@dataclass(frozen=True)
class Answer:
    """A whole answer, as what oras expects of one."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.content.decode(errors="replace")

    def json(self) -> Any:
        """The body as JSON. Raise ValueError."""
        return json.loads(self.content)


class Web:
    """Connections to one registry, for many threads."""

    def __init__(self, *, plain: bool, plain_anywhere: bool, limit_s: float) -> None:
        self._plain, self._plain_anywhere = plain, plain_anywhere
        self._limit_s = limit_s
        self._session = requests.Session()
        for scheme in ("https://", "http://"):
            adapter = requests.adapters.HTTPAdapter(pool_maxsize=_MOST_KEPT)
            self._session.mount(scheme, adapter)
        self._closed = threading.Event()
        self._open: set[Any] = set()

    def get(self, url: str, **options: Any) -> Answer:
        """Return a whole answer of 1 MiB at most; called by oras."""
        return self.request("GET", url, **options)

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        verify: object = True,
    ) -> Answer:
        """Return a whole answer of 1 MiB at most. Raise SourceUnusable. `verify` stays on."""
        if method != "GET":
            raise SourceUnusable(f"{method} is not asked of a registry")
        return self.read(url, headers or {}, _MOST_OF_ANSWER, params)

    def read(
        self,
        url: str,
        headers: Mapping[str, str],
        limit_bytes: int,
        params: Mapping[str, str] | None = None,
    ) -> Answer:
        """Return a whole answer. Raise SourceUnusable if it is longer or takes too long."""
        until_s = time.monotonic() + self._limit_s
        where = quoted(url.partition("?")[0])
        try:
            with self._opened(url, dict(headers), params) as response:
                limit = limit_bytes if response.status_code == 200 else _MOST_OF_ANSWER
                content = bytearray()
                # As it was sent: nothing is unpacked before its digest is checked.
                while piece := response.raw.read1(_PIECE, decode_content=False):
                    content += piece
                    if len(content) > limit:
                        raise SourceUnusable(f"{where} sends more than {limit:,} bytes: not read")
                    if time.monotonic() > until_s:
                        raise SourceUnusable(
                            f"{where} takes longer than {self._limit_s:g} s: try again, or raise "
                            "--fetch-timeout"
                        )
                return Answer(response.status_code, response.headers, bytes(content))
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            if isinstance(error, SourceUnusable):
                raise
            raise SourceUnusable(f"cannot read {where}: {_why(error)}") from None

    @contextmanager
    def _opened(
        self, url: str, headers: dict[str, str], params: Mapping[str, str] | None
    ) -> Iterator[requests.Response]:
        headers["Accept-Encoding"] = "identity"
        for _ in range(_MOST_REDIRECTS + 1):
            self._check(url)
            response = self._sent(url, headers, params)
            self._open.add(response.raw)
            try:
                if not response.is_redirect:
                    yield response
                    return
                target = _joined(url, response.headers["Location"])
            finally:
                self._open.discard(response.raw)
                response.close()
            if _origin(target) != _origin(url):
                headers = {k: v for k, v in headers.items() if k.lower() != "authorization"}
            url, params = target, None
        raise SourceUnusable(f"{quoted(_bare(url))}: more than {_MOST_REDIRECTS} redirects")

    def _sent(
        self, url: str, headers: Mapping[str, str], params: Mapping[str, str] | None
    ) -> requests.Response:
        """Send one request. Not by Session.send: it reads the whole body of a redirect."""
        request = self._session.prepare_request(
            # The function keeps requests from taking passwords from ~/.netrc.
            requests.Request("GET", url, headers=dict(headers), params=params, auth=_as_it_is)
        )
        # The CA and the proxies that the environment names.
        settings = self._session.merge_environment_settings(
            request.url or url, {}, True, None, None
        )
        adapter = self._session.get_adapter(request.url or url)
        return adapter.send(request, timeout=(_CONNECT_S, _READ_S), **settings)

    def _check(self, url: str) -> None:
        """Raise SourceUnusable for a URL that nothing may be sent to."""
        if self._closed.is_set():
            raise SourceUnusable("interrupted")
        try:
            parts = urlsplit(url)
            host = parts.hostname or ""
        except ValueError:
            host = ""
        if not host or parts.username is not None:
            raise SourceUnusable(f"the registry sends us to no valid address: {quoted(_bare(url))}")
        plain = self._plain and (self._plain_anywhere or is_loopback(host))
        if parts.scheme != "https" and not (parts.scheme == "http" and plain):
            raise SourceUnusable(
                f"{quoted(_bare(url))} is not reached over https: not asked; --plain-http allows "
                "it where the registry itself is asked over http"
            )

    def close(self) -> None:
        """End what runs. May be called twice."""
        self._closed.set()
        for raw in list(self._open):
            # urllib3 2.3; before, the limit of time ends it.
            end = getattr(raw, "shutdown", None)
            if end is not None:
                _quietly(end)
        self._session.close()


def _quietly(end: Any) -> None:
    try:
        end()
    except (OSError, ValueError):
        return  # it has ended


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise SourceUnusable(
            f"{quoted(_bare(url))} sends us to no valid address: {quoted(_bare(location))}"
        ) from None


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _bare(url: str) -> str:
    """Return a URL without what may be secret: its query, and a user's name and password."""
    head = url.partition("?")[0].partition("#")[0]
    scheme, separator, rest = head.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"


def _why(error: Exception) -> str:
    """Return the reason of a failed connection in a few words."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, requests.exceptions.SSLError):
            return f"its certificate is not trusted, or it speaks no TLS ({_last(cause)})"
        if isinstance(cause, urllib3.exceptions.NewConnectionError):
            return _last(cause)  # by its class, it is a timeout too
        if isinstance(cause, (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)):
            return f"no answer within {_READ_S:g} s"
        cause = cause.__cause__ or cause.__context__
    return _last(error)


def _last(error: BaseException) -> str:
    """Return the innermost error's text: those around it name objects in memory."""
    inner = getattr(error, "reason", None) or next(
        (each for each in reversed(error.args) if isinstance(each, BaseException)), None
    )
    if isinstance(inner, BaseException) and inner is not error:
        return _last(inner)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return quoted(str(error).rpartition(": ")[2] or type(error).__name__)
