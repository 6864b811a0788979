"""Where the daemon serves, where its state is, and which keys it uses."""

from __future__ import annotations

import os

from pydantic import BaseModel, Field, SecretStr

from wasmkilnd.config.values.types import (
    LIVE,
    Addresses,
    AdminAddress,
    Directory,
    OptionalDirectory,
    Secret,
    Switch,
    Texts,
    TextsOrPaths,
    default_state_dir,
)


class ServingSettings(BaseModel):
    """Where the daemon serves, where its state is, and which keys it uses."""

    listen: Addresses = Field(
        default=("127.0.0.1:50051",),
        description="Where gRPC is served: host:port, [v6]:port or unix:/path; several are"
        " separated by commas (the flag may also be repeated). Port 0 takes any free one.",
    )
    admin_listen: AdminAddress = Field(
        default="127.0.0.1:9464",
        description="Where /metrics, /healthz, /readyz and the status page (/) are served over"
        " HTTP: one address as in listen, or none to switch them off.",
    )
    admin_names: Texts = Field(
        default=(),
        description="Names besides localhost under which a browser or a proxy may ask for the pages"
        " of an admin_listen that only this machine can reach, without TLS; several are separated"
        " by commas. Pages of other names are refused, since a website can have its name stand for"
        " 127.0.0.1. IP addresses are always accepted.",
    )
    allow_remote: Switch = Field(
        default=False,
        description="Permit addresses that other machines can reach without TLS, or without"
        " identities: everyone who reaches such an address may then use the daemon, or read along.",
    )
    state_dir: Directory = Field(
        default_factory=lambda: default_state_dir(os.environ),
        description="The directory of engines, keys and the embedded server's data. Daemons with"
        " the same directory share them.",
        json_schema_extra={
            "shown_default": "$XDG_STATE_HOME/wasmkiln, else ~/.local/state/wasmkiln"
        },
    )
    keys_dir: OptionalDirectory = Field(
        default="",
        description="The directory of the signing key and the trusted keys; empty for keys below"
        " the state directory. Daemons on one Redis may share it.",
        json_schema_extra=LIVE,
    )
    signing_key: Secret = Field(
        default=SecretStr(""),
        description="The Ed25519 private key that artifacts are signed with, instead of the one"
        " in keys_dir: PKCS #8 PEM, or base64 of its 32 bytes. `wasmkilnd keys generate --print`"
        " makes one.",
        json_schema_extra=LIVE,
    )
    trusted_keys: TextsOrPaths = Field(
        default=(),
        description="Public keys to trust besides those in keys_dir: hex, base64, or the"
        " path of a PEM file or of a folder of PEM files; several are separated by commas.",
        json_schema_extra=LIVE,
    )
