"""Who may reach the daemon, how connections are protected, and what is written about it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from wasmkilnd.config.values.types import (
    LIVE,
    MIB,
    Count,
    Group,
    LowerCase,
    OptionalAddresses,
    OptionalFile,
    Seconds,
    Size,
    SocketMode,
    Switch,
    Text,
    TextOrPath,
    Texts,
)


class AccessSettings(BaseModel):
    """Who may reach the daemon, how connections are protected, and what is written about it."""

    tls_cert_file: OptionalFile = Field(
        default="",
        description="The certificate of the daemon, with its chain, as PEM. With it, gRPC and HTTP"
        " are served over TLS on every TCP address. Read again when it changes. `wasmkilnd tls"
        " init` makes one for a first try.",
        json_schema_extra=LIVE,
    )
    tls_key_file: OptionalFile = Field(
        default="",
        description="The private key of tls_cert_file, as PEM without a password. Read again when"
        " it changes.",
        json_schema_extra=LIVE,
    )
    tls_client_ca_file: OptionalFile = Field(
        default="",
        description="The CAs that sign the certificates of callers, as PEM. With it, callers at"
        " the TCP addresses of listen need a certificate by one of them. Read again when it"
        " changes.",
        json_schema_extra=LIVE,
    )
    tls_min_version: Annotated[Literal["1.2", "1.3"], LowerCase] = Field(
        default="1.3", description="The lowest version of TLS that is spoken."
    )
    token_listen: OptionalAddresses = Field(
        default=(),
        description="More addresses of gRPC, over TLS and without client certificates, for callers"
        " with tokens. Only useful beside tls_client_ca_file: without that, listen is such an"
        " address itself.",
    )
    operator_listen: OptionalAddresses = Field(
        default=(),
        description="Addresses of gRPC for operators. With any, AdminService is served there"
        " alone, besides everything else.",
    )
    socket_mode: SocketMode = Field(
        default="0600",
        description="The mode of the daemon's Unix sockets, in octal: who can connect to them.",
    )
    socket_group: Group = Field(
        default="",
        description="The group of the daemon's Unix sockets, by name or number. Empty for the"
        " daemon's own group.",
    )
    policy_file: OptionalFile = Field(
        default="",
        description="The TOML file that says who may do what: docs/reference/policy.md. Read again"
        " when it changes.",
        json_schema_extra=LIVE,
    )
    jwt_issuer: Text = Field(
        default="",
        description="The issuer (iss) of JSON Web Tokens that callers may send as bearer tokens;"
        " empty to accept none.",
        json_schema_extra=LIVE,
    )
    jwt_audience: Texts = Field(
        default=(),
        description="The audiences (aud) of which a JSON Web Token must have one. Required with"
        " jwt_issuer.",
        json_schema_extra=LIVE,
    )
    jwt_keys: TextOrPath = Field(
        default="",
        description="The JSON Web Key Set of the issuer: the path of a file, or an https:// URL."
        " A file is read again when it changes, a URL every five minutes and when a token names an"
        " unknown key.",
        json_schema_extra=LIVE,
    )
    open_health: Switch = Field(
        default=False,
        description="Answer grpc.health.v1, /healthz and /readyz to everybody, where all else"
        " needs an identity.",
        json_schema_extra=LIVE,
    )
    audit_file: TextOrPath = Field(
        default="",
        description="Where the audit is written, a line of JSON for each compile, upload, act of"
        " an operator, refusal and change of keys: the path of a file, `log` for the daemon's log,"
        " or empty for no audit.",
        json_schema_extra=LIVE,
    )
    audit_file_bytes: Size = Field(
        default=64 * MIB,
        ge=64 * 1024,
        description="The size at which the audit file is renamed to NAME.1, and a new one begun.",
        json_schema_extra=LIVE,
    )
    audit_files: Count = Field(
        default=10,
        ge=1,
        le=1000,
        description="How many renamed audit files are kept.",
        json_schema_extra=LIVE,
    )
    value_max_age_s: Seconds = Field(
        default=0.0,
        ge=0,
        description="The greatest age of a stored artifact, by the time that its signature states;"
        " older ones are compiled again. It bounds how old a value can be that somebody puts back"
        " into Redis. 0 for no limit.",
        json_schema_extra=LIVE,
    )
