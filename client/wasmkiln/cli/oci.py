"""Modules in images: folders in OCI's image layout, as `skopeo copy` makes them of registries.

wash and wkg publish one layer of application/wasm; Spin publishes a layer for each component
beside those of files and of the application's own description. A layer's digest is its module's:
so a module that the daemon has is not read.

Nothing in a folder is believed: manifests and layers are bounded in number and size, and each that
is named by digest is checked.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from wasmkiln.cli.inputs import read_file
from wasmkiln.cli.text import quoted
from wasmkiln.shared import MAX_MODULE_BYTES, is_digest

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
# Registries allow some hundred layers.
_MOST_LAYERS, _MOST_MANIFESTS = 2_000, 200
# index.json, an image's own index, and no further.
_MOST_INDEXES = 2


class SourceUnusable(OSError):  # noqa: N818 - named like the errors of the client
    """A layout, a list or a file cannot be read, or holds other bytes than it says."""


@dataclass(eq=False)
class Module:
    """A module to warm. `read` returns its bytes or file; None: only the digest is known."""

    name: str
    sha256: str
    read: Callable[[], bytes | str] | None = None
    # Held by the thread that uploads it, so that several engines need one upload.
    uploading: threading.Lock = field(default_factory=threading.Lock)


class _Descriptor(NamedTuple):
    media_type: str
    sha256: str
    size_bytes: int


def is_layout(folder: Path) -> bool:
    """Return whether a folder says that it is an image layout."""
    return os.path.isfile(folder / "oci-layout")  # noqa: PTH113 - is_file raises where it may not look


def modules_in(folder: Path) -> list[Module]:
    """Return the modules of all manifests that index.json names, each once. Raise OSError."""
    name = str(folder)
    found = list(_layers(folder, _content(folder / "index.json", _MOST_MANIFEST_BYTES)))
    layers = {one.sha256: one for one in found if one.media_type in MODULE_TYPES}
    if not layers:
        types = quoted(", ".join(sorted({one.media_type for one in found})) or "none")
        raise SourceUnusable(f"{name} holds no module; the types of its layers: {types}")

    return [
        Module(
            f"{name}#{sha256[:12]}" if layers.keys() != {sha256} else name,
            sha256,
            partial(_blob, folder, sha256, min(layer.size_bytes, MAX_MODULE_BYTES)),
        )
        for sha256, layer in layers.items()
    ]


def _layers(folder: Path, content: bytes, indexes: int = 0) -> Iterator[_Descriptor]:
    """Yield the layers of a manifest, or of the manifests of an index."""
    key, found = _parsed(str(folder), content)
    if key == "layers":
        yield from found
        return
    if indexes == _MOST_INDEXES:
        raise SourceUnusable(f"{folder} has indexes within the index of an image: not read")
    for one in found:
        if one.media_type in MANIFEST_TYPES:
            inner = _blob(folder, one.sha256, _MOST_MANIFEST_BYTES)
            yield from _layers(folder, inner, indexes + 1)


def _parsed(name: str, content: bytes) -> tuple[str, list[_Descriptor]]:
    """Return "manifests" and those of an index, or "layers" and those of a manifest."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        document = None
    match document:
        case {"manifests": list(found)} if len(found) <= _MOST_MANIFESTS:
            return "manifests", [_descriptor(name, one) for one in found]
        case {"layers": list(found)} if len(found) <= _MOST_LAYERS:
            return "layers", [_descriptor(name, one) for one in found]
    raise _malformed(name)


def _descriptor(name: str, one: Any) -> _Descriptor:
    match one:
        case {"mediaType": str(kind), "digest": str(digest), "size": int(size)} if size >= 0:
            if is_digest(sha256 := digest.removeprefix("sha256:")):
                return _Descriptor(kind, sha256, size)
    raise _malformed(name)


def _malformed(name: str) -> SourceUnusable:
    most = f"{_MOST_LAYERS:,} layers or {_MOST_MANIFESTS} manifests at most"
    return SourceUnusable(f"{name} has a malformed manifest: expected {most}, each by its SHA-256")


def _blob(folder: Path, sha256: str, limit_bytes: int) -> bytes:
    path = folder / "blobs" / "sha256" / sha256
    content = _content(path, limit_bytes)
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise SourceUnusable(f"{path} has the SHA-256 {found}, not {sha256} as its source says")
    return content


def _content(path: Path, limit_bytes: int) -> bytes:
    if path.exists() and not path.is_file():
        raise SourceUnusable(f"{path} is no file")  # Opening a pipe would wait for a writer.
    return read_file(str(path), limit_bytes)
