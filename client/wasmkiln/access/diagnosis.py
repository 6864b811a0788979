"""Why a connection fails, in one sentence with what to do."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from wasmkiln._untrusted import quoted
from wasmkiln.access.certificate_dates import valid_until
from wasmkiln.access.places import host_and_port
from wasmkiln.access.probe import Probe
from wasmkiln.errors import ConnectionFailed

if TYPE_CHECKING:
    from wasmkiln.access.access import Access
    from wasmkiln.access.tls import TLS

_LIMIT_S = 2.0

# In gRPC's words: causes that need no diagnosis, and those that another attempt does not heal.
# "Connection refused" is none of them: of a host with several addresses it says that of one.
_CLEAR = ("DNS resolution failed", "Domain name not found", "unix:")
_LASTING = ("handshake failed", "Hostname Verification", "Failed parsing HTTP/2")

# X509_V_ERR_…, which Python's ssl passes on as `verify_code`.
_EXPIRED, _NOT_YET_VALID = 10, 9
_OTHER_HOST = (62, 64)


def is_lasting(error: ConnectionFailed) -> bool:
    """Return whether another attempt would fail in the same way, as gRPC's words tell."""
    return any(words in error.metadata.get("detail", "") for words in _LASTING)


def explained(error: ConnectionFailed, access: Access, timeout_s: float) -> ConnectionFailed:
    """Return an error that says why, or the given one where that cannot be told.

    Connect to the daemon for that, for two seconds or `timeout_s` at most.
    """
    detail = error.metadata.get("detail", "")
    place = host_and_port(access.address)
    if place is None or timeout_s <= 0 or any(words in detail for words in _CLEAR):
        return error
    probe = Probe.within(min(timeout_s, _LIMIT_S), *place)
    try:
        found = _over_tls(probe, access.tls) if access.tls else _over_plaintext(probe)
    except (OSError, ValueError):
        return error
    if found is None:
        return error
    cause, sentence = found
    return ConnectionFailed(
        sentence.format(address=access.address), metadata={**error.metadata, "cause": cause}
    )


def _over_plaintext(probe: Probe) -> tuple[str, str] | None:
    if not probe.speaks_plaintext() and probe.speaks_tls():
        return "speaks_tls", (
            "the daemon at {address} speaks TLS only: use tls (WASMKILN_TLS=on, and "
            "WASMKILN_CA_FILE for its CA)"
        )
    return None


def _over_tls(probe: Probe, tls: TLS) -> tuple[str, str] | None:
    try:
        return None if probe.greets(tls) else _not_let_in(tls)
    except ssl.SSLCertVerificationError as error:
        return _bad_certificate(probe, tls, error)
    except ssl.SSLError as error:
        alert = (error.reason or "").removeprefix("TLSV13_").removeprefix("TLSV1_")
        if "ALERT" in alert:
            return _alerted(tls, alert)
    except ConnectionError:
        pass
    if probe.speaks_plaintext():
        return "speaks_no_tls", (
            "the daemon at {address} speaks no TLS: leave out tls (WASMKILN_TLS, "
            "WASMKILN_CA_FILE), or give the daemon a tls_cert_file"
        )
    return None


def _bad_certificate(
    probe: Probe, tls: TLS, error: ssl.SSLCertVerificationError
) -> tuple[str, str]:
    if error.verify_code == _EXPIRED:
        return "certificate_expired", (
            "the certificate of the daemon at {address} has expired: its operator has to renew it "
            "(tls_cert_file); or this machine's clock is wrong"
        )
    if error.verify_code == _NOT_YET_VALID:
        return "certificate_not_yet_valid", (
            "the certificate of the daemon at {address} is not valid yet: compare the clocks of "
            "both machines"
        )
    if error.verify_code in _OTHER_HOST:
        wanted = _literal(tls.server_name or probe.host)
        names = _literal(quoted(", ".join(probe.certificate_names(tls)))) or "no host"
        return "wrong_host", (
            f"the certificate of the daemon at {{address}} is for {names}, not for {wanted}: use "
            "one of its names in the address, or as server_name (WASMKILN_SERVER_NAME)"
        )
    where = f"those in {_literal(str(tls.ca_file))}" if tls.ca_file else "those of this system"
    return "unknown_ca", (
        f"the certificate of the daemon at {{address}} is signed by none of the trusted CAs, "
        f"{where}: set ca_file (WASMKILN_CA_FILE) to the CA of the daemon"
        f" ({_literal(error.verify_message)})"
    )


def _alerted(tls: TLS, alert: str) -> tuple[str, str]:
    if "PROTOCOL_VERSION" in alert:
        return "tls_version", (
            "the daemon at {address} speaks another version of TLS: this client has "
            f"{ssl.OPENSSL_VERSION}"
        )
    return _not_let_in(tls, alert)


def _not_let_in(tls: TLS, alert: str = "") -> tuple[str, str]:
    """Say why a daemon ends a connection after the handshake. gRPC sends no alert for it."""
    if not tls.own_files:
        return "client_certificate_missing", (
            "the daemon at {address} closes connections without a client certificate: use "
            "cert_file and key_file (WASMKILN_CLIENT_CERT_FILE, WASMKILN_CLIENT_KEY_FILE), or an "
            "address of the daemon that takes tokens (token_listen)"
        )
    own = _literal(tls.own_files[0])
    until = valid_until(Path(tls.own_files[0]).read_text("ascii", "replace"))
    now = datetime.datetime.now(datetime.timezone.utc)  # noqa: UP017 - Python 3.10 too
    if "EXPIRED" in alert or (until and until < now):
        since = f" on {until:%Y-%m-%d %H:%M} UTC" if until else ""
        return "client_certificate_expired", (
            f"the client certificate in {own} has expired{since}: renew it; this client reads the "
            "file again when it changes"
        )
    return "client_certificate_refused", (
        f"the daemon at {{address}} does not take the client certificate in {own}: its CA has to "
        "be one of the daemon's tls_client_ca_file"
    )


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
