"""How a client reaches its daemon, and how it says who calls: address, TLS, tokens, profiles.

An argument wins over the profile, and the profile over the environment. With a profile, the
environment's variables for TLS, tokens and the address are not read, so that no token goes to a
daemon for which it was not meant. A token goes over plaintext to this machine only, unless the
caller says otherwise. Files are read again when they change, and no message shows a token.

The file with profiles is TOML; each profile names a daemon and the way to reach it:

[profile.prod]
address = "kiln.example.org:50051"
ca_file = "kiln-ca.pem"            # paths begin in the file's folder
token_file = "~/.config/wasmkiln/prod.token"
namespace = "team-a"
"""

from __future__ import annotations

import logging
import os
import re
import stat
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from wasmkiln._untrusted import quoted
from wasmkiln.errors import ConnectionFailed
from wasmkiln.shared import identity, namespace_path, user_folder

T = TypeVar("T")
Metadata = tuple[tuple[str, str], ...]
PathLike = str | os.PathLike[str]

_log = logging.getLogger("wasmkiln")

DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_TIMEOUT_S = 60.0

# gRPC itself reads an address with one of its schemes in front.
_UNIX = ("unix:", "unix-abstract:")
_SCHEME = re.compile(r"(unix|unix-abstract|dns|ipv4|ipv6|vsock|xds|passthrough):")
_PLACE = re.compile(r"(?:\[[^\]]+\]|[^\[\]:,/]+):([0-9]{1,5})")
_THIS_MACHINE = re.compile(
    r"(?:unix|unix-abstract|vsock):.*|(?:(?:dns|ipv4|ipv6|passthrough):(?:///?|//[^/]*/)?)?"
    r"(?:(?:[\w-]+\.)*localhost|127(?:\.[0-9]+){3}|\[::1(?:%\w+)?\]):[0-9]+"
)
# Where Linux distributions keep the system's CAs, if Python does not know.
_SYSTEM_CAS = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)
# How long a look takes whether somebody listens at a host.
_LIMIT_S = 2.0
# Of a small file: a token, a certificate, profiles.
_MAX_BYTES = 1024 * 1024
# gRPC servers refuse metadata above 8 KiB in all.
_MAX_TOKEN_BYTES = 7 * 1024

# Answers stay below gRPC's default limit of 4 MiB by contract; a module may be as large as the
# daemon allows.
# After a failed connection gRPC waits before the next one, and fails each call meanwhile with the
# first one's error: with its default of a second, retries would be in vain.
# "min_reconnect_backoff" is in truth how long one connection may take: as long as a call by
# default, whose own deadline ends it sooner.
# A stream of the blocking client is read by its caller's thread alone: this takes a tenth less
# time than gRPC's usual thread beside it.
_CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("SingleThreadedUnaryStream", 1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", int(DEFAULT_TIMEOUT_S * 1000)),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


class Watched(Generic[T]):
    """What is made of files, and made again when one of them changes. Its repr does not show it.

    While the files cannot be used, for example because only one of two is new, the last value
    stays.
    """

    def __init__(self, paths: Sequence[str], make: Callable[[], T]) -> None:
        self._paths, self._make = paths, make
        self._stamps = self._look()
        self._value = make()

    def value(self) -> T:
        """Return it."""
        try:
            stamps = self._look()
            if stamps != self._stamps:
                # Of before, so that files which change meanwhile are read once more.
                self._value, self._stamps = self._make(), stamps
        except (OSError, ValueError) as why:
            _log.debug("what was read last is used on: %s", why)
        return self._value

    def _look(self) -> list[tuple[int, ...]]:
        return [identity(os.stat(path)) for path in self._paths]  # noqa: PTH116


@dataclass(frozen=True)
class TLS:
    """How to speak TLS with a daemon. The files are PEM, and read again when they change.

    `ca_file` has the CAs that may sign the daemon's certificate; without it, those of the
    system. `cert_file` and `key_file` are this client's own certificate, with its chain, and
    its key without a password, for daemons that ask for one. `server_name` is the name that the
    daemon's certificate has to be for, where that is not the address's host.
    """

    ca_file: PathLike = ""
    cert_file: PathLike = ""
    key_file: PathLike = ""
    server_name: str = ""

    def __post_init__(self) -> None:
        """Raise ValueError for one of `cert_file` and `key_file` without the other."""
        if bool(self.cert_file) != bool(self.key_file):
            missing = "cert_file" if self.key_file else "key_file"
            raise ValueError(f"a client certificate needs both of its files: {missing} is missing")

    @property
    def authorities(self) -> list[str]:
        """The file with the trusted CAs; nothing where the system has none that is known."""
        if self.ca_file:
            return [_expanded(self.ca_file)]
        import ssl

        known = (ssl.get_default_verify_paths().cafile, *_SYSTEM_CAS)
        return [each for each in known if each and Path(each).exists()][:1]

    @property
    def own_files(self) -> list[str]:
        """The client's own certificate and its key, or nothing."""
        return [_expanded(self.cert_file), _expanded(self.key_file)] if self.cert_file else []

    def credentials(self) -> Any:
        """Read the files and return credentials for a channel.

        Raise OSError when a file cannot be read, and ValueError when it is not what it should be.
        """
        import ssl

        import grpc

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        roots = chain = key = None
        for ca_file in self.authorities:
            roots = _read(ca_file)
            try:
                context.load_verify_locations(ca_file)
            except ssl.SSLError:
                raise ValueError(f"cannot use {ca_file}: expected CAs in PEM") from None
        if self.own_files:
            chain, key = map(_read, self.own_files)
            try:
                # An empty password: otherwise OpenSSL would ask for one at the terminal.
                context.load_cert_chain(self.own_files[0], self.own_files[1], "")
            except (ssl.SSLError, ValueError):
                raise ValueError(
                    f"cannot use {' with '.join(self.own_files)}: expected a certificate and the "
                    "key of it in PEM, the key without a password"
                ) from None
        return grpc.ssl_channel_credentials(roots, key, chain)


@dataclass(frozen=True)
class Access:
    """How to reach a daemon and say who calls, as a profile or the environment says, or a client.

    Only the environment has a `token`; a file with profiles names a file. A client's `credentials`
    are made of either, and of its arguments.
    """

    address: str = ""
    tls: TLS | None = None
    token: str | None = field(default=None, repr=False)
    token_file: str = ""
    token_over_plaintext: bool = False
    trusted_keys: tuple[str, ...] = ()
    namespace: str = ""
    credentials: Watched[Metadata] | None = None

    @classmethod
    def choose(
        cls,
        address: str | None = None,
        profile: str | None = None,
        tls: TLS | bool | None = None,
        token: str | None = None,
        token_file: PathLike | None = None,
        token_over_plaintext: bool | None = None,
        namespace: str | None = None,
    ) -> Access:
        """Choose each from its argument, else from the profile, else from the environment.

        The profile is `profile`, else WASMKILN_PROFILE; with one, the environment is not read.
        Raise ValueError for what cannot be used, and OSError for a file that cannot be read.
        """
        name = profile or os.environ.get("WASMKILN_PROFILE")
        told = read_profile(name) if name else _from_environment()
        address = choose_address(address or told.address)
        if not isinstance(tls, (TLS, bool, type(None))):
            raise TypeError("tls is True, False or a TLS: write TLS(ca_file=…) to name the CA")
        is_unix = address.startswith(_UNIX)
        if tls and is_unix:
            raise ValueError("a Unix socket speaks no TLS: leave out tls")
        if not isinstance(tls, TLS):
            chosen = TLS() if tls and not told.tls else told.tls
            tls = None if tls is False or is_unix else chosen
        if token is None and token_file is None:
            token, token_file = told.token, told.token_file or None
        if token_over_plaintext is None:
            token_over_plaintext = told.token_over_plaintext
        credentials = _credentials(token, token_file)
        if credentials and not (tls or token_over_plaintext or is_local(address)):
            raise ValueError(
                f"cannot send a token to {address} without TLS, since others could read it "
                "on the way: use tls (WASMKILN_TLS=on, or WASMKILN_CA_FILE), or allow it by "
                "token_over_plaintext (WASMKILN_TOKEN_OVER_PLAINTEXT=on)"
            )
        namespace = told.namespace if namespace is None else namespace
        namespace_path(Path(), namespace)  # raises ValueError for what is no name
        return replace(told, address=address, tls=tls, namespace=namespace, credentials=credentials)

    def metadata(self) -> Metadata:
        """Return the metadata that says who calls."""
        return self.credentials.value() if self.credentials else ()


# What gRPC says of a connection that TLS ended, and a word for it.
_CAUSES = {
    "WRONG_VERSION_NUMBER": "speaks_no_tls",
    "PROTOCOL_VERSION": "tls_version",
    "Hostname Verification": "wrong_host",
    "certificate has expired": "certificate_expired",
    "not yet valid": "certificate_not_yet_valid",
    "CERTIFICATE_VERIFY_FAILED": "unknown_ca",
}
_SENTENCES = {
    "speaks_tls": "{daemon} closes connections, so it may speak TLS only: use tls "
    "(WASMKILN_TLS=on, and WASMKILN_CA_FILE for its CA)",
    "speaks_no_tls": "{daemon} speaks no TLS: leave out tls (WASMKILN_TLS, WASMKILN_CA_FILE), or "
    "give the daemon a tls_cert_file",
    "tls_version": "{daemon} speaks another version of TLS than this client",
    "wrong_host": "the certificate of {daemon} is not for {host}: use a host that it is for in the "
    "address, or as server_name (WASMKILN_SERVER_NAME)",
    "certificate_expired": "the certificate of {daemon} has expired: its operator has to renew it "
    "(tls_cert_file); or this machine's clock is wrong",
    "certificate_not_yet_valid": "the certificate of {daemon} is not valid yet: compare the clocks "
    "of both machines",
    "unknown_ca": "the certificate of {daemon} is signed by none of the trusted CAs, those {cas}: "
    "set ca_file (WASMKILN_CA_FILE) to the CA of the daemon",
    "client_certificate_missing": "{daemon} closes connections without a client certificate: use "
    "cert_file and key_file (WASMKILN_CLIENT_CERT_FILE, WASMKILN_CLIENT_KEY_FILE), or an address "
    "of the daemon that takes tokens (token_listen)",
    "client_certificate_expired": "the client certificate in {own} has expired: renew it; this "
    "client reads the file again when it changes",
    "client_certificate_refused": "{daemon} does not take the client certificate in {own}: its CA "
    "has to be one of the daemon's tls_client_ca_file",
}


def explained(error: ConnectionFailed, access: Access, timeout_s: float) -> ConnectionFailed:
    """Return an error that says what of TLS is wrong, or the given one where gRPC does not tell.

    `metadata["cause"]` is a word for it.
    """
    detail, tls = error.metadata["detail"], access.tls or TLS()
    cause = next((_CAUSES[words] for words in _CAUSES if words in detail), "")
    # A connection that ended before the daemon spoke HTTP/2: gRPC's servers send no alert.
    ended = any(words in detail for words in ("Socket closed", "Connection reset", "ALERT"))
    if "Connection refused" in detail and timeout_s > 0:
        ended = _is_taken(access.address, min(timeout_s, _LIMIT_S))
    if not cause and "failed to connect" in detail and ended:
        if access.tls is None:
            cause = "" if access.address.startswith(_UNIX) else "speaks_tls"
        elif not tls.own_files:
            cause = "client_certificate_missing"
        else:
            has_expired = _has_expired(tls.own_files[0])
            cause = f"client_certificate_{'expired' if has_expired else 'refused'}"
    if not cause:
        return error
    message = _SENTENCES[cause].format(
        daemon=f"the daemon at {access.address}",
        host=tls.server_name or access.address.rpartition(":")[0],
        cas=f"in {tls.ca_file}" if tls.ca_file else "of this system",
        own=tls.cert_file,
    )
    return ConnectionFailed(message, metadata={**error.metadata, "cause": cause})


def _is_taken(address: str, timeout_s: float) -> bool:
    """Return whether a host takes connections, of whose addresses gRPC tells that one does not."""
    import socket

    host, _, port = address.rpartition(":")
    if not _PLACE.fullmatch(address) or re.fullmatch(r"[0-9.]+|\[.*\]", host):
        return False  # an address, of which gRPC's word counts
    try:
        socket.create_connection((host, int(port)), timeout_s).close()
    except OSError:
        return False
    return True


def _has_expired(certificate: str) -> bool:
    import ssl

    # Private to CPython, and there since 2.6: the standard library has no other reader of dates.
    decode: Any = getattr(getattr(ssl, "_ssl", None), "_test_decode_cert", lambda _: {})
    try:
        return ssl.cert_time_to_seconds(decode(certificate).get("notAfter")) < time.time()
    except (OSError, TypeError, ValueError):
        return False


class Connection:
    """The gRPC channel of a client: opened for its first call, and anew when a file of TLS changed.

    Calls that run over the channel before end there; it closes when the last one lets go of it.
    Safe for many threads at once.
    """

    _async_pid = 0
    """The process that called by grpc.aio, which does not survive a fork."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._lock = threading.Lock()
        self._tls = access.tls and Watched(
            access.tls.authorities + access.tls.own_files, access.tls.credentials
        )
        self._latest: dict[Any, tuple[Any, Any]] = {}
        """The channel for new calls of each event loop, or of none, and its credentials."""
        self._open: weakref.WeakSet[Any] = weakref.WeakSet()
        self.closed = threading.Event()

    def channel(self, api: Any, loop: Any = None) -> Any:
        """Return a channel of `api`: of grpc, or of grpc.aio for the loop that runs.

        Raise RuntimeError once closed.
        """
        with self._lock:
            if self.closed.is_set():
                raise RuntimeError("this client is closed")
            if Connection._async_pid not in (0, os.getpid()):
                raise RuntimeError(
                    "an AsyncClient made calls before this process was forked, so gRPC would wait "
                    "for ever here: fork before the first call of an AsyncClient"
                )
            if loop is not None:
                Connection._async_pid = os.getpid()
            channel, known = self._latest.get(loop, (None, None))
            credentials = self._tls.value() if self._tls else None
            if channel is None or credentials is not known:
                address, options = self._access.address, _CHANNEL_OPTIONS
                if is_local(address):
                    # A proxy of the environment would read tokens, and lead to its own machine.
                    options += (("grpc.enable_http_proxy", 0),)
                if self._access.tls and (name := self._access.tls.server_name):
                    options += (("grpc.ssl_target_name_override", name),)
                if credentials is None:
                    channel = api.insecure_channel(address, options)
                else:
                    channel = api.secure_channel(address, credentials, options)
                # gRPC closes a channel that nobody has any more.
                for old in [old for old in self._latest if old and old.is_closed()]:
                    del self._latest[old]
                self._latest[loop] = channel, credentials
                self._open.add(channel)
            return channel

    def close(self) -> list[Any]:
        """Open no more channels. Return those that are open, which the caller closes."""
        with self._lock:
            self.closed.set()
            return list(self._open)


def choose_address(argument: str) -> str:
    """Return `argument`, else WASMKILN_ADDRESS, else 127.0.0.1:50051.

    Raise ValueError for a URL, which gRPC would read as a host's name, and unless the port is
    from 1 to 65535: gRPC would use another one.
    """
    address = argument or os.environ.get("WASMKILN_ADDRESS") or DEFAULT_ADDRESS
    place = _PLACE.fullmatch(address)
    if not _SCHEME.match(address) and not (place and 0 < int(place[1]) < 65536):
        raise ValueError(
            f"an address is host:port or unix:/path, with a port from 1 to 65535, not {address}"
        )
    return address


def is_local(address: str) -> bool:
    """Return whether an address is on this machine, as far as it tells by itself."""
    return _THIS_MACHINE.fullmatch(address) is not None


def choose_switch(name: str) -> bool | None:
    """Return whether a variable of the environment is on; None without it. Raise ValueError."""
    text = os.environ.get(name, "").strip().lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text not in ("", "0", "false", "no", "off"):
        raise ValueError(f"{name} has to be on or off, not {text[:100]!r}")
    return False if text else None


def profiles_file() -> Path:
    """Return the path of the profiles: WASMKILN_PROFILES_FILE, else in the user's configuration."""
    if named := os.environ.get("WASMKILN_PROFILES_FILE"):
        return Path(named).expanduser()
    return user_folder(os.environ, "XDG_CONFIG_HOME", ".config") / "profiles.toml"


def read_profile(name: str) -> Access:
    """Return a profile. Raise ValueError where there is none, or it is wrong, and OSError."""
    path = profiles_file()
    found = _tables(path)
    if name not in found:
        known = ", ".join(sorted(found)) or "none"
        raise ValueError(f"{path} has no [profile.{quoted(name)}]: it has {quoted(known)}")
    try:
        return _access(_checked(found[name], path.parent))
    except ValueError as error:
        raise ValueError(f"cannot use profile {quoted(name)} of {path}: {error}") from None


def _tables(path: Path) -> dict[str, Any]:
    """Return what the file with profiles has, by name."""
    try:
        import tomllib

        document = tomllib.loads(_read(str(path)).decode())
    except ModuleNotFoundError:
        raise ValueError("profiles need Python 3.11 or newer") from None
    except FileNotFoundError:
        raise ValueError(
            f"there are no profiles: {path} does not exist; write it as"
            " docs/how-to/call-with-credentials.md says, or set WASMKILN_PROFILES_FILE"
        ) from None
    except ValueError as error:
        raise ValueError(f"cannot read {path}: it is not TOML: {quoted(str(error))}") from None
    profiles = document.pop("profile", {})
    if document or not isinstance(profiles, dict):
        other = next(iter(document), "profile")
        raise ValueError(f"cannot use {path}: expected tables [profile.NAME], not {quoted(other)}")
    return profiles


_FILES = ("ca_file", "cert_file", "key_file", "token_file")
_FOR_TLS = ("ca_file", "cert_file", "key_file", "server_name")
_KINDS: dict[str, Any] = {
    **dict.fromkeys(("address", "server_name", "namespace", *_FILES), str),
    **dict.fromkeys(("tls", "token_over_plaintext"), bool),
    "trusted_keys": (str, list),
}


def _checked(table: Any, folder: Path) -> dict[str, Any]:
    """Return what a profile's table says, with whole paths. Raise ValueError."""
    if not isinstance(table, dict) or not table.get("address"):
        raise ValueError("expected a table with an address")
    for key, value in table.items():
        if key not in _KINDS:
            raise ValueError(f"unknown key {quoted(key)}: it may have {', '.join(_KINDS)}")
        if not isinstance(value, _KINDS[key]):
            raise ValueError(f"{key} has the wrong type")
    keys = table.get("trusted_keys", [])
    keys = [keys] if isinstance(keys, str) else keys
    if not all(isinstance(key, str) for key in keys):
        raise ValueError("trusted_keys has the wrong type")
    # A file or folder beside the profiles, or the key as it is.
    beside = [key if "\n" in key else str(folder / Path(key).expanduser()) for key in keys]
    found = [path if Path(path).exists() else key for path, key in zip(beside, keys, strict=True)]
    files = {key: str(folder / Path(table[key]).expanduser()) for key in _FILES if table.get(key)}
    return {**table, **files, "trusted_keys": tuple(found)}


def _from_environment() -> Access:
    given: dict[str, Any] = {
        "ca_file": os.environ.get("WASMKILN_CA_FILE"),
        "cert_file": os.environ.get("WASMKILN_CLIENT_CERT_FILE"),
        "key_file": os.environ.get("WASMKILN_CLIENT_KEY_FILE"),
        "server_name": os.environ.get("WASMKILN_SERVER_NAME"),
        "tls": choose_switch("WASMKILN_TLS"),
        "token": os.environ.get("WASMKILN_TOKEN") or None,
        "token_file": os.environ.get("WASMKILN_TOKEN_FILE", ""),
        "token_over_plaintext": bool(choose_switch("WASMKILN_TOKEN_OVER_PLAINTEXT")),
    }
    return _access(given)


def _access(given: dict[str, Any]) -> Access:
    """Return what is given, by the names of a profile's keys."""
    files = {key: value for key in _FOR_TLS if (value := given.pop(key, None))}
    wanted = given.pop("tls", None)
    tls = TLS(**files) if wanted or (files and wanted is None) else None
    return Access(tls=tls, **given)


def _credentials(text: str | None, file: PathLike | None) -> Watched[Metadata] | None:
    """Return the metadata that carries a token."""
    if text is not None and file is not None:
        raise ValueError(
            "there is a token and a token_file (or WASMKILN_TOKEN and WASMKILN_TOKEN_FILE): "
            "give one of them"
        )
    if text is not None:
        metadata = _authorization(text, "the token")
        return Watched((), lambda: metadata)
    if file is None:
        return None
    path = _expanded(file)
    what = f"the token in {path}"
    token = Watched([path], lambda: _authorization(_read(path).decode("ascii", "replace"), what))
    status = Path(path).stat()
    if status.st_mode & stat.S_IROTH and status.st_uid == os.geteuid():
        _log.warning("every user of this machine can read the token in %s: chmod 600 it", path)
    return token


def _authorization(text: str, what: str) -> Metadata:
    """Return the metadata that carries a token. Raise ValueError, which does not quote it."""
    token = re.sub(r"\Abearer\s+", "", text.strip(), flags=re.IGNORECASE)
    if not re.fullmatch(rf"[!-~]{{1,{_MAX_TOKEN_BYTES}}}", token):
        raise ValueError(
            f"cannot use {what}: expected one token of at most {_MAX_TOKEN_BYTES:,} visible ASCII "
            "characters, and nothing else"
        )
    return (("authorization", f"Bearer {token}"),)


def _read(path: str) -> bytes:
    """Return a file's bytes. Raise OSError, and ValueError above 1 MiB."""
    with Path(path).open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"cannot use {path}: it is larger than 1 MiB")
    return data


def _expanded(path: PathLike) -> str:
    return str(Path(path).expanduser())
