"""Modules in images: OCI's image layout in a folder, and repositories of registries over HTTP.

wash and wkg publish one layer of application/wasm; Spin publishes a layer for each component
beside those of files and of the application's own description. A layer's digest is its module's:
so a module that the daemon has is never downloaded.

Nothing of a registry is believed: manifests, layers and redirects are bounded in number, size and
time, each fetch in its whole time, and each manifest by digest and each layer is checked. A
redirect to another host or port takes no credentials along; nothing goes from https to http; plain
http goes to this machine only, unless the caller says otherwise.

PyPI's oras (0.2.43) does none of this: it waits without a limit, holds manifests and tokens of any
size, and sends credentials wherever a registry says, over http too.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import os
import re
import ssl
import subprocess
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError
from urllib.parse import urlencode, urljoin, urlsplit

from wasmkiln.cli.inputs import TimeLimit, in_parallel, read_file
from wasmkiln.cli.text import quoted
from wasmkiln.shared import MAX_MODULE_BYTES, is_digest

SCHEME = "oci://"
MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
# Those of wash and wkg (the CNCF's format), of Spin, and of wasmCloud before 1.0.
MODULE_TYPES = (
    "application/wasm",
    "application/vnd.wasm.content.layer.v1+wasm",
    "application/vnd.module.wasm.content.layer.v1+wasm",
)
_MOST_MANIFEST_BYTES = 4 * 2**20
# Of an answer that is no manifest and no layer.
_MOST_ANSWER_BYTES = 2**20
# Registries allow some hundred layers.
_MOST = {"layers": 2_000, "manifests": 200}
_MOST_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
# To connect, and without a byte.
_SILENT_S = 20.0
_PIECE = 2**18

# What the distribution specification allows, and no more: all of it goes into URLs. A host has a
# dot, a colon or a bracket, or is this machine: else it is a part of the repository.
_NAME = r"localhost|[A-Za-z0-9-]+(?=:)|[A-Za-z0-9-]+\.[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]"
_WORD = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
_REFERENCE = re.compile(
    rf"((?:{_NAME})(?::\d{{1,5}})?)/({_WORD}(?:/{_WORD})*)(?::({_TAG}))?(?:@sha256:([0-9a-f]{{64}}))?"
)
# Docker Hub is known by one name, answers at another, and logs in under a third.
_HUB, _HUB_HOST, _HUB_LOGIN = "docker.io", "registry-1.docker.io", "https://index.docker.io/v1/"


class SourceUnusable(OSError):  # noqa: N818 - named like the errors of the client
    """A registry, a layout, a list or a file cannot be read, or holds other bytes than it says."""


@dataclass(eq=False)
class Module:
    """A module to warm. `read` returns its bytes or file; None: only the digest is known."""

    name: str
    sha256: str
    read: Callable[[], bytes | str] | None = None
    # Held by the thread that uploads it, so that several engines need one upload.
    uploading: threading.Lock = field(default_factory=threading.Lock)


# --- manifests ---------------------------------------------------------------------------------


class _Descriptor(NamedTuple):
    media_type: str
    sha256: str
    size_bytes: int


# Returns what lies under "manifests" or "blobs", by its digest: at most so many bytes, checked.
_Read = Callable[[str, str, int], bytes]


def _modules_of(name: str, content: bytes, read: _Read) -> list[Module]:
    """Return the modules of a manifest or an index, each once. Raise SourceUnusable."""
    key, found = _parsed(name, content)
    if key == "manifests":
        indexed, found = [one for one in found if one.media_type in MANIFEST_TYPES], []
        for one in indexed:
            key, inner = _parsed(name, read("manifests", one.sha256, _MOST_MANIFEST_BYTES))
            if key == "manifests":
                raise SourceUnusable(f"{name} has an index within an index: not read")
            found += inner
    layers = {one.sha256: one for one in found if one.media_type in MODULE_TYPES}
    if not layers:
        types = quoted(", ".join(sorted({one.media_type for one in found})) or "none")
        raise SourceUnusable(f"{name} holds no module; the types of its layers: {types}")

    def read_layer(layer: _Descriptor) -> bytes:
        if (size := layer.size_bytes) > MAX_MODULE_BYTES:
            most = f"at most {MAX_MODULE_BYTES:,} are read"
            raise SourceUnusable(f"{name} has a layer of {size:,} bytes: {most}")
        return read("blobs", layer.sha256, layer.size_bytes)

    return [
        Module(
            f"{name}#{sha256[:12]}" if layers.keys() != {sha256} else name,
            sha256,
            partial(read_layer, layer),
        )
        for sha256, layer in layers.items()
    ]


def _parsed(name: str, content: bytes) -> tuple[str, list[_Descriptor]]:
    """Return "manifests" and those of an index, or "layers" and those of a manifest."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise SourceUnusable(f"{name} has a manifest that is no JSON object")
    key = "manifests" if "manifests" in document else "layers"
    found, most = document.get(key), _MOST[key]
    if not isinstance(found, list) or len(found) > most:
        raise SourceUnusable(f"{name} has a manifest whose {key} are no list of {most:,} at most")
    return key, [_descriptor(name, one) for one in found]


def _descriptor(name: str, one: Any) -> _Descriptor:
    match one:
        case {"mediaType": str(kind), "digest": str(digest), "size": int(size)} if size >= 0:
            if is_digest(sha256 := digest.removeprefix("sha256:")):
                return _Descriptor(kind, sha256, size)
            raise SourceUnusable(f"{name} names a digest that is no SHA-256: {quoted(digest)}")
    raise SourceUnusable(f"{name} has a manifest with a malformed descriptor")


def _checked(content: bytes, sha256: str, what: str) -> bytes:
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise SourceUnusable(f"{what} has the SHA-256 {found}, not {sha256} as its source says")
    return content


# --- a folder in the image layout ----------------------------------------------------------------


def is_layout(folder: Path) -> bool:
    """Return whether a folder says that it is an image layout."""
    return os.path.isfile(folder / "oci-layout")  # noqa: PTH113 - is_file raises where it may not look


def modules_in(folder: Path) -> list[Module]:
    """Return the modules of all manifests that index.json names. Raise OSError."""

    def read(_: str, sha256: str, limit_bytes: int) -> bytes:
        path = folder / "blobs" / "sha256" / sha256
        return _checked(_content(path, limit_bytes), sha256, str(path))

    index = _content(folder / "index.json", _MOST_MANIFEST_BYTES)
    return _modules_of(str(folder), index, read)


def _content(path: Path, limit_bytes: int) -> bytes:
    if path.exists() and not path.is_file():
        raise SourceUnusable(f"{path} is no file")  # Opening a pipe would wait for a writer.
    return read_file(str(path), limit_bytes)


# --- a repository of a registry ----------------------------------------------------------------


class Repository:
    """oci://HOST/REPOSITORY[:TAG][@DIGEST]. Raise ValueError with a sentence for another text."""

    def __init__(self, text: str, plain_http: bool | None, limit_s: float) -> None:
        found = _REFERENCE.fullmatch(text.removeprefix(SCHEME))
        try:
            parts = urlsplit(f"//{found[1]}" if found else "")
            is_here = _is_loopback(parts.hostname)
            valid = parts.port != 0
        except ValueError:
            valid = False
        if found is None or not valid:
            raise ValueError(
                f"{quoted(text)} is no reference: write oci://HOST/REPOSITORY[:TAG]"
                "[@sha256:DIGEST], HOST with a dot or port, REPOSITORY in lower case"
            )
        self.name, self.host, self.repository, tag, sha256 = text, *found.groups("")
        if self.host in {_HUB, "index.docker.io"}:
            self.host = _HUB_HOST
            if "/" not in self.repository:
                self.repository = f"library/{self.repository}"
        self.manifest = f"sha256:{sha256}" if sha256 else tag or "latest"
        self._plain = is_here if plain_http is None else plain_http
        self._plain_anywhere, self._limit_s, self._authorization = plain_http, limit_s, ""

    def modules(self) -> list[Module]:
        """Return the modules of the image. Raise SourceUnusable."""
        content = self._fetched("manifests", self.manifest, _MOST_MANIFEST_BYTES)
        return _modules_of(
            self.name,
            content,
            lambda kind, sha256, limit: self._fetched(kind, f"sha256:{sha256}", limit),
        )

    def _fetched(self, kind: str, name: str, limit_bytes: int) -> bytes:
        """Return what has a name, within the limit of time for all that it takes.

        A thread that comes too late is left to itself: it ends with the process at last.
        """
        scheme, (_, _, sha256) = "http" if self._plain else "https", name.partition(":")
        url = f"{scheme}://{self.host}/v2/{self.repository}/{kind}/{name}"
        work = partial(self._content, limit_bytes=limit_bytes)
        try:
            [content] = in_parallel(1, [url], work, self._limit_s)
            return _checked(content, sha256, f"a part of {self.name}") if sha256 else content
        except (TimeLimit, subprocess.TimeoutExpired):  # the latter of who keeps a password
            late = f"takes longer than {self._limit_s:g} s: try again, or raise --fetch-timeout"
            raise SourceUnusable(f"{quoted(url)} {late}") from None
        except SourceUnusable:
            raise
        except Exception as error:
            # Of urllib's, http.client's, ssl's and json's many: whatever a registry sends, only its
            # own source fails. Others than OSError may quote a URL with a signature in it.
            cause = error.reason if isinstance(error, URLError) else error
            other = f"malformed ({type(cause).__name__})"
            why = quoted(str(cause)) if isinstance(cause, OSError) else other
            raise SourceUnusable(f"cannot read {quoted(url)}: {why}") from None

    def _content(self, url: str, limit_bytes: int) -> bytes:
        status, asked, content = self._get(url, self._authorization, limit_bytes)
        if status == 401:
            self._authorization = self._authorized(asked)
            status, _, content = self._get(url, self._authorization, limit_bytes)
        if status == 200:
            return content
        why = {
            401: f"asks for credentials: `docker login {self.host}`",
            404: "has no such repository, tag or digest, or hides it",
        }.get(status, f"answers with status {status}")
        raise SourceUnusable(f"cannot read {self.name}: {self.host} {why}")

    def _authorized(self, challenge: str) -> str:
        """Return the header that the registry asks for; "" if there is none to send."""
        login = _login(_HUB_LOGIN if self.host == _HUB_HOST else self.host, self._limit_s)
        kind, _, rest = challenge.partition(" ")
        if kind.lower() == "basic":
            return login
        fields = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        if kind.lower() != "bearer" or "realm" not in fields:
            return ""
        query = urlencode({name: fields[name] for name in ("service", "scope") if name in fields})
        url = f"{fields['realm']}?{query}"
        status, _, content = self._get(url, login, _MOST_ANSWER_BYTES)
        document = json.loads(content) if status == 200 else {}
        token = document.get("token") or document.get("access_token") or ""
        return f"Bearer {token}" if re.fullmatch(r"[\x21-\x7e]+", token) else ""

    @cached_property
    def _opener(self) -> urllib.request.OpenerDirector:
        """What follows no redirect, and takes the proxies that the environment names."""
        opener = urllib.request.OpenerDirector()
        tls = ssl.create_default_context(cafile=os.environ.get("REQUESTS_CA_BUNDLE") or None)
        opener.add_handler(urllib.request.HTTPHandler())
        opener.add_handler(urllib.request.HTTPSHandler(context=tls))
        opener.add_handler(urllib.request.ProxyHandler())
        return opener

    def _get(self, url: str, authorization: str, limit_bytes: int) -> tuple[int, str, bytes]:
        """Return the status of an answer after redirects, its challenge, and its body."""
        headers = {"Accept": ", ".join(MANIFEST_TYPES) if "/manifests/" in url else "*/*"}
        for _ in range(_MOST_REDIRECTS + 1):
            here = self._allowed(url)
            sent = headers | ({"Authorization": authorization} if authorization else {})
            request = urllib.request.Request(url, headers=sent)  # noqa: S310 - is checked
            with self._opener.open(request, timeout=_SILENT_S) as response:
                location = response.headers.get("Location")
                if response.status not in _REDIRECTS or not location:
                    challenge = response.headers.get("WWW-Authenticate", "")
                    limit = limit_bytes if response.status == 200 else _MOST_ANSWER_BYTES
                    return response.status, challenge, _read(response, limit, url)
            url = urljoin(url, location)
            if self._allowed(url) != here:
                authorization = ""
        raise SourceUnusable(f"{_bare(url)}: more than {_MOST_REDIRECTS} redirects")

    def _allowed(self, url: str) -> str:
        """Return where a URL leads. Raise SourceUnusable where nothing may be sent."""
        parts = urlsplit(url)
        plain = self._plain and (self._plain_anywhere or _is_loopback(parts.hostname))
        if not parts.hostname or parts.port == 0 or parts.username is not None:
            raise SourceUnusable(f"the registry sends us to no valid address: {_bare(url)}")
        if parts.scheme == "https" or (parts.scheme == "http" and plain):
            return f"{parts.scheme}://{parts.netloc}"
        raise SourceUnusable(f"{_bare(url)} is not reached over https: not asked")


def _login(registry: str, limit_s: float) -> str:
    """Return the credentials that `docker login` left for a registry, as a header; "" if none."""
    folder = Path(os.environ.get("DOCKER_CONFIG") or "~/.docker").expanduser()
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except FileNotFoundError:
        return ""
    auth = config.get("auths", {}).get(registry, {}).get("auth")
    helper = config.get("credHelpers", {}).get(registry) or config.get("credsStore")
    if helper and not auth:
        get = [f"docker-credential-{helper}", "get"]
        asked = registry.encode()
        told = subprocess.run(get, input=asked, capture_output=True, timeout=limit_s, check=False)
        if told.returncode == 0:  # else it has none: anybody may read
            found = json.loads(told.stdout)
            auth = base64.b64encode(f"{found['Username']}:{found['Secret']}".encode()).decode()
    # Another text would be quoted by the error that it leads to.
    return f"Basic {auth}" if auth and re.fullmatch(r"[A-Za-z0-9+/=_-]+", auth) else ""


def _is_loopback(host: str | None) -> bool:
    """Return whether a host is this machine, by its name or address alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _read(response: Any, limit_bytes: int, url: str) -> bytes:
    """Read a body as it was sent: nothing is unpacked before its digest is checked."""
    content = bytearray()
    while piece := response.read1(_PIECE):
        content += piece
        if len(content) > limit_bytes:
            raise SourceUnusable(f"{_bare(url)} sends more than {limit_bytes:,} bytes: not read")
    return bytes(content)


def _bare(url: str) -> str:
    """Return a URL without what may be secret: its query, and a user's name and password."""
    parts = urlsplit(url)
    return quoted(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")
