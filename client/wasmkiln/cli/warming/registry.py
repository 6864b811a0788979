"""A repository of a registry, read with what oras knows of credentials.

oras finds them as docker, podman and its own command leave them: `auths`, `credHelpers` and
`credsStore` of ~/.docker/config.json, or of the one in DOCKER_CONFIG; and it exchanges them for
a registry's token. They go to the registry that they are for, and to where that one sends for
tokens. Each repository has a token of its own.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import oras.auth
import oras.container

from wasmkiln._untrusted import quoted
from wasmkiln.cli.warming.manifest import MANIFEST_TYPES, MOST_MANIFEST_BYTES, modules_of
from wasmkiln.cli.warming.module import Module, checked
from wasmkiln.cli.warming.unusable import SourceUnusable
from wasmkiln.cli.warming.web import Answer, Web

if TYPE_CHECKING:
    from wasmkiln.cli.warming.manifest import Descriptor
    from wasmkiln.cli.warming.reference import Reference

# oras logs what the errors below say, in its own words, to standard error.
logging.getLogger("oras.logger").setLevel(logging.CRITICAL + 1)


def modules_at(name: str, reference: Reference, web: Web, *, plain: bool) -> list[Module]:
    """Return the modules that a reference names. Raise SourceUnusable."""
    repository = _Repository(name, reference, web, plain=plain)
    return modules_of(name, repository.top(), repository)


class _Repository:
    """Manifests and layers of one repository."""

    def __init__(self, name: str, reference: Reference, web: Web, *, plain: bool) -> None:
        self._name, self._reference, self._web, self._plain = name, reference, web, plain
        scheme = "http" if plain else "https"
        self._url = f"{scheme}://{reference.host}/v2/{reference.repository}"
        self._authorization: dict[str, str] = {}
        self._asking = threading.Lock()

    def top(self) -> bytes:
        """Return the manifest or index that the reference names; checked if by digest."""
        reference = self._reference
        content = self._manifest(reference.manifest)
        if reference.digest:
            return checked(content, reference.digest, f"the manifest of {self._name}")
        return content

    def manifest(self, wanted: Descriptor) -> bytes:
        """Return a manifest that an index names."""
        content = self._manifest(f"sha256:{wanted.sha256}")
        return checked(content, wanted.sha256, f"a manifest of {self._name}")

    def layer(self, wanted: Descriptor) -> bytes:
        """Return a layer."""
        url = f"{self._url}/blobs/sha256:{wanted.sha256}"
        content = self._get(url, "*/*", wanted.size_bytes)
        return checked(content, wanted.sha256, f"a layer of {self._name}")

    def _manifest(self, name: str) -> bytes:
        url = f"{self._url}/manifests/{name}"
        return self._get(url, ", ".join(MANIFEST_TYPES), MOST_MANIFEST_BYTES)

    def _get(self, url: str, accept: str, limit_bytes: int) -> bytes:
        sent = self._authorization
        answer = self._web.read(url, {"Accept": accept, **sent}, limit_bytes)
        if answer.status_code == 401:
            headers = {"Accept": accept, **self._authorize(answer, sent)}
            answer = self._web.read(url, headers, limit_bytes)
        if answer.status_code == 200:
            return answer.content
        raise SourceUnusable(f"cannot read {self._name}: {self._refusal(answer)}")

    def _authorize(self, answer: Answer, sent: dict[str, str]) -> dict[str, str]:
        """Return the header that the registry asks for. Raise SourceUnusable."""
        with self._asking:
            # Another thread may have asked meanwhile.
            if self._authorization is sent:
                try:
                    self._authorization = self._asked(answer)
                except SourceUnusable:
                    raise
                except Exception as error:
                    # Malformed configuration, a helper that fails, a token server that lies.
                    raise SourceUnusable(
                        f"cannot log in to {self._reference.host} for {self._name}: "
                        f"{type(error).__name__}: {quoted(str(error))}"
                    ) from None
            return self._authorization

    def _asked(self, answer: Answer) -> dict[str, str]:
        challenge = answer.headers.get("Www-Authenticate", "")
        is_basic = challenge.lower().startswith("basic")
        backend: Any = oras.auth.get_auth_backend(
            "basic" if is_basic else "token", self._web, self._plain
        )
        container = oras.container.Container(self._reference.repository, self._reference.login)
        container.registry = self._reference.login
        configured = os.environ.get("DOCKER_CONFIG")
        files = [str(Path(configured) / "config.json")] if configured else []
        backend.load_configs(container, files)
        if not is_basic:
            headers, _ = backend.authenticate_request(answer, {})
        elif hasattr(backend, "_basic_auth"):
            headers = backend.get_auth_header()
        else:
            headers = {}
        if "Authorization" not in headers:
            raise SourceUnusable(f"cannot read {self._name}: {self._refusal(answer)}")
        return {"Authorization": str(headers["Authorization"])}

    def _refusal(self, answer: Answer) -> str:
        """Return what a refusal means, in words."""
        host = self._reference.host
        if answer.status_code == 401:
            return f"{host} asks for credentials: `docker login {host}`"
        if answer.status_code == 403:
            return f"{host} does not let these credentials read it"
        if answer.status_code == 404:
            return f"{host} has no such repository, tag or digest, or hides it"
        if answer.status_code == 429:
            return f"{host} has been asked too often: try again later"
        return f"{host} answers with status {answer.status_code}"
