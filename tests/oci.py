"""Images as wash, wkg and Spin publish them, as bytes, and folders of them in OCI's layout."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def descriptor(content: bytes, media_type: str) -> dict[str, Any]:
    """Return what a manifest says of a blob."""
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return {"mediaType": media_type, "digest": digest, "size": len(content)}


@dataclass
class Image:
    """A manifest or index, and all the blobs and manifests below it."""

    media_type: str
    content: bytes
    blobs: list[bytes] = field(default_factory=list)
    manifests: list[Image] = field(default_factory=list)

    @classmethod
    def of(cls, config: bytes, config_type: str, layers: list[tuple[bytes, str]]) -> Self:
        """Return an image of one manifest; a layer is its bytes and type."""
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(config, config_type),
            "layers": [descriptor(*layer) for layer in layers],
        }
        blobs = [config, *(content for content, _ in layers)]
        return cls(MANIFEST, json.dumps(manifest).encode(), blobs)

    @classmethod
    def wash(cls, module: bytes) -> Self:
        """Return one as `wash push` and `wkg oci push` make it.

        https://github.com/bytecodealliance/rust-oci-wasm, src/config.rs: what both of them use.
        """
        digest = f"sha256:{hashlib.sha256(module).hexdigest()}"
        config: dict[str, Any] = {
            "created": "2026-11-27T00:00:00Z",
            "author": None,
            "architecture": "wasm",
            "os": "wasip2",
            "layerDigests": [digest],
            "component": {"exports": [], "imports": [], "target": None},
        }
        kind = "application/vnd.wasm.config.v0+json"
        return cls.of(json.dumps(config).encode(), kind, [(module, "application/wasm")])

    @classmethod
    def spin(cls, components: dict[str, bytes], *, old: bool = False) -> Self:
        """Return one as `spin registry push` makes it; `old`: as Spin 1 did.

        https://github.com/spinframework/spin, crates/oci/src/client.rs.
        """
        application = json.dumps({"spin_lock_version": 1, "components": list(components)}).encode()
        kind = "application/vnd.fermyon.spin.application.v1+config"
        wasm = "application/vnd.wasm.content.layer.v1+wasm"
        layers = [(module, wasm) for module in components.values()]
        layers.append((b"<h1>", "application/vnd.wasm.content.layer.v1+data"))
        if old:
            return cls.of(application, kind, layers)
        digest = f"sha256:{hashlib.sha256(application).hexdigest()}"
        config: dict[str, Any] = {
            "architecture": "wasm",
            "os": "Wasip1",
            "config": {"Labels": {"com.fermyon.spin.lockedAppDigest": digest}},
            "rootfs": {"type": "layers", "diff_ids": []},
        }
        oci = "application/vnd.oci.image.config.v1+json"
        return cls.of(json.dumps(config).encode(), oci, [*layers, (application, kind)])

    @classmethod
    def index(cls, *images: Image) -> Self:
        """Return an index of images, one for each platform."""
        named = [
            descriptor(image.content, image.media_type)
            | {"platform": {"architecture": "wasm", "os": f"wasip{n}"}}
            for n, image in enumerate(images, 1)
        ]
        document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": named}
        return cls(INDEX, json.dumps(document).encode(), manifests=list(images))

    def all_blobs(self) -> list[bytes]:
        """Return the blobs of this image and of those below it."""
        return [*self.blobs, *(blob for each in self.manifests for blob in each.all_blobs())]

    def all_manifests(self) -> list[Image]:
        """Return the images below this one, innermost first, and this one."""
        return [*(one for each in self.manifests for one in each.all_manifests()), self]


def layout(folder: Path, *images: Image) -> Path:
    """Write a folder in OCI's image layout."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    index = Image.index(*images)
    for content in (*index.all_blobs(), *(one.content for one in index.all_manifests())):
        (blobs / hashlib.sha256(content).hexdigest()).write_bytes(content)
    (folder / "index.json").write_bytes(index.content)
    return folder
