"""All that a client needs to reach its daemon, chosen from arguments, profile and environment."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wasmkiln import _routing
from wasmkiln._settings import CHANNEL_OPTIONS, choose_address, choose_switch
from wasmkiln.access.places import is_local, is_unix
from wasmkiln.access.profiles import Profile, read_profile
from wasmkiln.access.tls import TLS
from wasmkiln.access.token import Token, TokenFile
from wasmkiln.shared import namespace_path

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wasmkiln.access.token import Metadata

_TLS_VARIABLES: Mapping[str, str] = {
    "ca_file": "WASMKILN_CA_FILE",
    "cert_file": "WASMKILN_CLIENT_CERT_FILE",
    "key_file": "WASMKILN_CLIENT_KEY_FILE",
    "server_name": "WASMKILN_SERVER_NAME",
}


@dataclass(frozen=True)
class Access:
    """How one client reaches its daemon, and how it says who calls."""

    address: str
    tls: TLS | None = None
    token: Token | None = field(default=None, repr=False)
    namespace: str = ""
    trusted_keys: tuple[str, ...] = ()
    """Those of the profile."""

    @classmethod
    def choose(
        cls,
        address: str | None = None,
        *,
        profile: str | None = None,
        tls: TLS | bool | None = None,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
        namespace: str | None = None,
        token_over_plaintext: bool | None = None,
    ) -> Access:
        """Choose each from its argument, else from the profile, else from the environment.

        The profile is `profile`, else WASMKILN_PROFILE; with one, the environment is not read.
        Raise ValueError for what cannot be used, and OSError for a file that cannot be read.
        """
        name = profile or os.environ.get("WASMKILN_PROFILE")
        chosen = read_profile(name) if name else _from_environment()
        access = cls(
            choose_address(address or chosen.address or None),
            _chosen_tls(tls, chosen.tls),
            _token(token, token_file) or _token(chosen.token or None, chosen.token_file or None),
            chosen.namespace if namespace is None else namespace,
            chosen.trusted_keys,
        )
        namespace_path(Path(), access.namespace)  # raises ValueError for what is no name
        if is_unix(access.address) and access.tls is not None:
            if tls:
                raise ValueError("a Unix socket speaks no TLS: leave out tls")
            access = replace(access, tls=None)
        if access.tls and len(_routing.members(access.address)) > 1 and not access.tls.server_name:
            raise ValueError(
                f"cannot check the certificates of {access.address}, since a list has no name: use "
                "server_name (WASMKILN_SERVER_NAME), or one DNS name for all"
            )
        told = chosen.token_over_plaintext if token_over_plaintext is None else token_over_plaintext
        if access.token and not (access.tls or told or is_local(access.address)):
            raise ValueError(
                f"cannot send a token to {access.address} without TLS, since others could read it "
                "on the way: use tls (WASMKILN_TLS=on, or WASMKILN_CA_FILE), or allow it by "
                "token_over_plaintext (WASMKILN_TOKEN_OVER_PLAINTEXT=on)"
            )
        return access

    def metadata(self) -> Metadata:
        """Return the metadata that says who calls."""
        return self.token.metadata() if self.token else ()

    def target(self) -> str:
        """Return what the client's gRPC channels connect to."""
        return _routing.target(self.address)

    def options(self) -> tuple[tuple[str, Any], ...]:
        """Return the options of the client's gRPC channels."""
        options: tuple[tuple[str, Any], ...] = CHANNEL_OPTIONS
        if _routing.is_ring(self.address):
            _routing.enable()
            options += _routing.OPTIONS
        if self.tls and self.tls.server_name:
            options += (("grpc.ssl_target_name_override", self.tls.server_name),)
        return options


def _from_environment() -> Profile:
    given = {key: os.environ.get(name, "") for key, name in _TLS_VARIABLES.items()}
    wanted = choose_switch("WASMKILN_TLS")
    if wanted is None:
        wanted = any(given.values())
    return Profile(
        name="",
        address="",
        tls=TLS(**given) if wanted else None,
        token=os.environ.get("WASMKILN_TOKEN", ""),
        token_file=os.environ.get("WASMKILN_TOKEN_FILE", ""),
        token_over_plaintext=bool(choose_switch("WASMKILN_TOKEN_OVER_PLAINTEXT")),
    )


def _chosen_tls(argument: TLS | bool | None, otherwise: TLS | None) -> TLS | None:
    if not isinstance(argument, (TLS, bool, type(None))):
        raise TypeError("tls is True, False or a TLS: write TLS(ca_file=…) to name the CA")
    if argument is True:
        return otherwise or TLS()
    return otherwise if argument is None else argument or None


def _token(text: str | None, file: str | os.PathLike[str] | None) -> Token | None:
    if text is not None and file is not None:
        raise ValueError(
            "there is a token and a token_file (or WASMKILN_TOKEN and WASMKILN_TOKEN_FILE): "
            "give one of them"
        )
    if file is not None:
        return TokenFile(file)
    return None if text is None else Token(text)
