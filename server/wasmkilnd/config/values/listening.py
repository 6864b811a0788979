"""Which addresses and TLS settings go together, and what each of them needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from wasmkilnd.config.values.address import Address

_REMOTE = "choose a loopback or unix: address, or permit it with allow_remote (--allow-remote,"
_REMOTE += " WASMKILN_ALLOW_REMOTE=true)"


@dataclass(frozen=True, slots=True)
class Listening:
    """What the settings say about where the daemon serves."""

    grpc: Mapping[str, Sequence[Address]]
    """The addresses of gRPC, by the setting that names them."""
    admin: Address | None
    cert: bool
    key: bool
    client_ca: bool
    identities: bool
    """Whether calls need an identity."""
    allow_remote: bool

    def conflict(self) -> tuple[str, str] | None:
        """Return a setting that cannot be as it is, and why; None if all is well."""
        return next((found for found in self._conflicts() if found), None)

    def _conflicts(self) -> Iterator[tuple[str, str] | None]:
        yield self._tls()
        yield self._same_address()
        for setting, addresses in self.grpc.items():
            for address in addresses:
                yield self._of_grpc(setting, address)
        if self.admin is not None and not self.admin.local:
            yield self._remote("admin_listen", self.admin)

    def _tls(self) -> tuple[str, str] | None:
        if self.cert != self.key:
            missing, given = "tls_cert_file", "tls_key_file"
            if self.cert:
                missing, given = given, missing
            return missing, f"it is missing: {given} needs it"
        if self.client_ca and not self.cert:
            return "tls_client_ca_file", "it needs TLS: set tls_cert_file and tls_key_file too"
        return None

    def _same_address(self) -> tuple[str, str] | None:
        known: list[tuple[str, Address]] = []
        for setting, addresses in self.grpc.items():
            for address in addresses:
                for other, before in known:
                    if other != setting and address.overlaps(before):
                        return setting, f"{address} already serves gRPC ({other}): choose another"
            known.extend((setting, address) for address in addresses)
        if self.admin is not None:
            for other, before in known:
                if self.admin.overlaps(before):
                    why = f"{self.admin} already serves gRPC ({other}): choose another address,"
                    return "admin_listen", f"{why} or none"
        return None

    def _of_grpc(self, setting: str, address: Address) -> tuple[str, str] | None:
        if setting == "token_listen" and address.path:
            return setting, f"{address} is a Unix socket, which speaks no TLS: name it in listen"
        if setting != "listen" and not address.local and not self.cert:
            why = f"other machines can reach {address}: it needs TLS (tls_cert_file, tls_key_file)"
            return setting, why
        return None if address.local else self._remote(setting, address)

    def _remote(self, setting: str, address: Address) -> tuple[str, str] | None:
        if self.allow_remote or (self.cert and self.identities):
            return None
        lacks = []
        if not self.cert:
            lacks.append("TLS (tls_cert_file, tls_key_file)")
        if not self.identities:
            lacks.append(
                "identities (tls_client_ca_file, jwt_issuer, policy_file, or tokens:"
                " `wasmkilnd token add`)"
            )
        return setting, (
            f"other machines can reach {address}, which needs {' and '.join(lacks)}: set these,"
            f" {_REMOTE}"
        )
