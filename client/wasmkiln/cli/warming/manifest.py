"""Manifests and indexes of OCI: which of their layers are modules.

wash and wkg publish one layer of application/wasm; Spin publishes a layer for each component
beside those of files and of the application's own description. An index names manifests, for
several platforms or tags. All of it comes from strangers: counts, sizes and types are checked.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from wasmkiln._requests import MAX_MODULE_BYTES
from wasmkiln._untrusted import quoted
from wasmkiln.cli.warming.module import Module, too_large
from wasmkiln.cli.warming.unusable import SourceUnusable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    *INDEX_TYPES,
)
# Those of wash and wkg (the CNCF's format), of Spin, and of wasmCloud before 1.0.
MODULE_TYPES = (
    "application/wasm",
    "application/vnd.wasm.content.layer.v1+wasm",
    "application/vnd.module.wasm.content.layer.v1+wasm",
)
MOST_MANIFEST_BYTES = 4 * 2**20
# Registries allow some hundred layers.
_MOST_LAYERS = 2_000
_MOST_MANIFESTS = 200
_MOST_DEPTH = 3
_TITLE = "org.opencontainers.image.title"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True)
class Descriptor:
    """What a manifest says of a layer, or an index of a manifest."""

    media_type: str
    sha256: str
    size_bytes: int
    title: str


class Blobs(Protocol):
    """Where the manifests and layers of one image lie; what it returns has its digest."""

    def manifest(self, wanted: Descriptor) -> bytes:
        """Return a manifest that an index names."""
        ...

    def layer(self, wanted: Descriptor) -> bytes:
        """Return a layer."""
        ...


def modules_of(name: str, content: bytes, blobs: Blobs) -> list[Module]:
    """Return the modules of a manifest or an index, each once. Raise SourceUnusable."""
    layers: dict[str, Descriptor] = {}
    others: set[str] = set()
    budget = [_MOST_MANIFESTS]
    for layer in _layers(name, content, blobs, budget, _MOST_DEPTH):
        if layer.media_type in MODULE_TYPES:
            layers.setdefault(layer.sha256, layer)
        else:
            others.add(layer.media_type)
    if not layers:
        types = ", ".join(sorted(quoted(each) for each in others)[:10]) or "none"
        raise SourceUnusable(
            f"{name} holds no WebAssembly module; the types of its layers: {types}"
        )
    return [_module(name, layer, blobs, alone=len(layers) == 1) for layer in layers.values()]


def _module(name: str, layer: Descriptor, blobs: Blobs, *, alone: bool) -> Module:
    full = name if alone else f"{name}#{layer.title or layer.sha256[:12]}"

    def read() -> bytes:
        if layer.size_bytes > MAX_MODULE_BYTES:
            raise too_large(full, layer.size_bytes)
        return blobs.layer(layer)

    return Module(full, layer.sha256, read, layer.size_bytes)


def _layers(
    name: str, content: bytes, blobs: Blobs, budget: list[int], depth: int
) -> Iterator[Descriptor]:
    document = _parsed(name, content)
    if "manifests" not in document:
        yield from _descriptors(name, document, "layers", _MOST_LAYERS)
        return
    if not depth:
        raise SourceUnusable(f"{name} has indexes in indexes in indexes: not read")
    for one in _descriptors(name, document, "manifests", _MOST_MANIFESTS):
        if one.media_type not in MANIFEST_TYPES:
            continue
        budget[0] -= 1
        if budget[0] < 0:
            raise SourceUnusable(f"{name} names more than {_MOST_MANIFESTS} manifests: not read")
        yield from _layers(name, blobs.manifest(one), blobs, budget, depth - 1)


def _parsed(name: str, content: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise SourceUnusable(f"{name} has a manifest that is no JSON object")
    if "manifests" not in document and "layers" not in document:
        raise SourceUnusable(f"{name} has a manifest without layers: it is of an old or other kind")
    return document


def _descriptors(
    name: str, document: Mapping[str, Any], key: str, most: int
) -> Iterator[Descriptor]:
    found = document[key]
    if not isinstance(found, list) or len(found) > most:
        raise SourceUnusable(f"{name} has a manifest whose {key} are no list of {most:,} at most")
    for one in found:
        match one:
            case {"mediaType": str(kind), "digest": str(digest), "size": int(size)} if size >= 0:
                sha256 = _DIGEST.fullmatch(digest)
            case _:
                raise SourceUnusable(f"{name} has a manifest with a malformed descriptor")
        if sha256 is None:
            raise SourceUnusable(f"{name} names a digest that is no SHA-256: {quoted(digest)}")
        titles = one.get("annotations")
        title = titles.get(_TITLE) if isinstance(titles, dict) else None
        yield Descriptor(kind, sha256[1], size, title if isinstance(title, str) else "")
