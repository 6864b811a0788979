"""Right and wrong certificates and tokens against real TLS servers, and what the user reads."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from wasmkiln import TLS, AsyncClient, Client, ConnectionFailed
from wasmkiln.cli.app import app

from tests.authority import DAY, Authority, Pair
from tests.unit.client.fake_daemon import fake_daemon


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Everything that is right or wrong in one way."""
    folder = tmp_path_factory.mktemp("pki")
    ca, other = Authority(folder / "ca"), Authority(folder / "other")
    name = "client.example.org"
    return SimpleNamespace(
        ca=ca,
        other=other,
        server=ca.server(),
        elsewhere=ca.server("elsewhere", ["kiln.example.org"]),
        expired=ca.server("expired", begins=-2 * DAY, ends=-DAY),
        client=ca.client(dns=name),
        stranger=other.client("stranger", dns=name),
        outdated=ca.client("outdated", dns=name, begins=-2 * DAY, ends=-DAY),
    )


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("WASMKILN_") and not name.startswith("WASMKILN_TEST"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def serve(world: SimpleNamespace, pair: str, *, asks: bool = False) -> Any:
    """Run a daemon by the name of its certificate, which may ask for one of clients."""
    return fake_daemon(getattr(world, pair, None), world.ca.ca_file if asks else None)


def files(world: SimpleNamespace, ca: str | None, own: str = "") -> TLS | None:
    """Return a client's files by their names; None for one that speaks no TLS."""
    if ca is None:
        return None
    pair = getattr(world, own, SimpleNamespace(cert_file="", key_file=""))
    ca_file = getattr(world, ca).ca_file if ca else ""
    return TLS(ca_file=ca_file, cert_file=pair.cert_file, key_file=pair.key_file)


# By what is wrong: the daemon's certificate, whether it asks for one, the client's CA and
# certificate, the cause, and the sentence that the user reads.
WRONG = {
    "plaintext to a TLS port": (
        *("server", False, None, "", "speaks_tls"),
        r"the daemon at \S+ closes connections, so it may speak TLS only: use tls"
        r" \(WASMKILN_TLS=on, and WASMKILN_CA_FILE for its CA\)",
    ),
    "TLS to a plaintext port": (
        *("none", False, "ca", "", "speaks_no_tls"),
        r"the daemon at \S+ speaks no TLS: leave out tls .*",
    ),
    "a CA that is not trusted": (
        *("server", False, "other", "", "unknown_ca"),
        r"the certificate of the daemon at \S+ is signed by none of the trusted CAs, those in"
        r" \S+ca\.pem: set ca_file \(WASMKILN_CA_FILE\) to the CA of the daemon",
    ),
    "a private CA, with the system's": (
        *("server", False, "", "", "unknown_ca"),
        r"the certificate of .* none of the trusted CAs, those of this system: set ca_file .*",
    ),
    "another host": (
        *("elsewhere", False, "ca", "", "wrong_host"),
        r"the certificate of the daemon at \S+ is not for 127\.0\.0\.1: use a host that it is for"
        r" in the address, or as server_name \(WASMKILN_SERVER_NAME\)",
    ),
    "an expired certificate": (
        *("expired", False, "ca", "", "certificate_expired"),
        r"the certificate of the daemon at \S+ has expired: its operator has to renew it .*",
    ),
    "no client certificate": (
        *("server", True, "ca", "", "client_certificate_missing"),
        r"the daemon at \S+ closes connections without a client certificate: use cert_file and"
        r" key_file .*",
    ),
    "a client certificate by another CA": (
        *("server", True, "ca", "stranger", "client_certificate_refused"),
        r"the daemon at \S+ does not take the client certificate in \S+stranger\.pem: its CA has"
        r" to be one of the daemon's tls_client_ca_file",
    ),
    "an expired client certificate": (
        *("server", True, "ca", "outdated", "client_certificate_expired"),
        r"the client certificate in \S+outdated\.pem has expired: renew it; .*",
    ),
}


@pytest.mark.parametrize(("pair", "asks", "ca", "own", "cause", "says"), WRONG.values(), ids=WRONG)
def test_each_wrong_connection_has_its_sentence(
    world: SimpleNamespace,
    make_client: Callable[..., Any],
    pair: str,
    asks: bool,
    ca: str | None,
    own: str,
    cause: str,
    says: str,
) -> None:
    with serve(world, pair, asks=asks) as daemon:
        client = make_client(daemon.address, tls=files(world, ca, own), timeout_s=20)
        with pytest.raises(ConnectionFailed) as failed:
            client.capabilities()
    assert re.fullmatch(says, failed.value.message), failed.value.message
    assert failed.value.metadata["cause"] == cause
    assert failed.value.metadata["address"] == daemon.address
    assert not daemon.tokens


def test_each_right_connection_works_with_a_token(
    world: SimpleNamespace, make_client: Callable[..., Any]
) -> None:
    for pair, asks, ca, own in (
        ("none", False, None, ""),
        ("server", False, "ca", ""),
        ("server", True, "ca", "client"),
    ):
        with serve(world, pair, asks=asks) as daemon:
            client = make_client(daemon.address, tls=files(world, ca, own), token="wk_a_secret")
            assert client.capabilities().version == "9.9.9"
            assert daemon.tokens == ["Bearer wk_a_secret"]
            if own:
                continue
            daemon.pair = daemon.pair and world.ca.server("renewed")
            assert client.capabilities()
            assert make_client(daemon.address, tls=files(world, ca)).capabilities()


def test_no_proxy_gets_a_token_for_this_machine(
    make_client: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy, fake_daemon() as daemon:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        client = make_client(daemon.address, token="wk_a_secret", timeout_s=20)
        assert client.capabilities().version == "9.9.9"
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()


def test_the_system_s_authorities_are_those_of_ssl_cert_file(
    world: SimpleNamespace, make_client: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(world.ca.ca_file))
    with serve(world, "server") as daemon:
        assert make_client(daemon.address, tls=True).capabilities().version == "9.9.9"


def test_a_client_certificate_that_is_replaced_serves_the_next_call(
    world: SimpleNamespace, make_client: Callable[..., Any], tmp_path: Path
) -> None:
    cert, key = tmp_path / "own.crt", tmp_path / "own.key"

    def put(pair: Pair) -> None:
        for new, place in ((pair.cert_file, cert), (pair.key_file, key)):
            (tmp_path / "new").write_bytes(new.read_bytes())
            (tmp_path / "new").replace(place)

    put(world.client)
    with fake_daemon(world.server, world.ca.ca_file) as daemon:
        tls = TLS(ca_file=world.ca.ca_file, cert_file=cert, key_file=key)
        client = make_client(daemon.address, tls=tls)
        client.capabilities()
        client.capabilities()
        second = world.ca.client("second", dns="second.example.org")
        (tmp_path / "new").write_bytes(second.cert_file.read_bytes())
        (tmp_path / "new").replace(cert)
        client.capabilities()  # the key is still the old one: so is the certificate in force
        assert daemon.certificates == [world.client.cert_file.read_bytes()] * 3
        put(second)
        client.capabilities()
        assert daemon.certificates[3] == second.cert_file.read_bytes()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_a_call_that_runs_while_the_files_change_ends_over_its_connection(
    world: SimpleNamespace, tmp_path: Path, kind: Any
) -> None:
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(world.ca.ca_file.read_bytes())
    with fake_daemon(world.server) as daemon:
        client = kind(daemon.address, tls=TLS(ca_file=ca_file))
        call: Callable[[], Any] = client.capabilities
        if kind is Client:
            call = lambda: asyncio.to_thread(client.capabilities)  # noqa: E731
        daemon.hang.clear()
        running = asyncio.create_task(call())
        assert await asyncio.to_thread(daemon.entered.wait, 30)
        ca_file.write_bytes(world.other.ca_file.read_bytes())
        with pytest.raises(ConnectionFailed, match="signed by none of the trusted CAs"):
            await call()  # over a new connection, by the new CA
        assert not running.done()
        daemon.hang.set()
        assert (await running).version == "9.9.9"
        closed = client.close()
        if closed is not None:
            await closed


def test_a_token_file_is_read_again(
    make_client: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    file.chmod(0o600)
    with fake_daemon() as daemon:
        client = make_client(daemon.address, token_file=file)
        client.capabilities()
        for text in ("second-one\n", ""):
            file.write_text(text)
            client.capabilities()
        file.unlink()
        client.capabilities()
        file.write_text("Bearer third")
        with monkeypatch.context() as patch:  # it cannot be read for a moment
            patch.setattr("wasmkiln.credentials._MAX_BYTES", 3)
            client.capabilities()
        client.capabilities()
    last = "Bearer second-one"
    assert daemon.tokens == ["Bearer first", *[last] * 4, "Bearer third"]


def test_a_profile_says_all_that_a_call_needs(world: SimpleNamespace, tmp_path: Path) -> None:
    folder = tmp_path / "config" / "wasmkiln"
    folder.mkdir(parents=True)
    token_file = folder / "ci.token"
    token_file.write_text("good")
    token_file.chmod(0o600)
    (folder / "ca.pem").write_bytes(world.ca.ca_file.read_bytes())
    run = CliRunner().invoke
    with fake_daemon(world.elsewhere) as daemon:
        (folder / "profiles.toml").write_text(
            f'[profile.ci]\naddress = "{daemon.address}"\nca_file = "ca.pem"\n'
            'server_name = "kiln.example.org"\ntoken_file = "ci.token"\n'
        )
        done = run(app, ["--profile", "ci", "whoami", "--json"])
        assert done.exit_code == 0, done.stderr
        with Client(profile="ci") as client:
            assert client.capabilities().version == "9.9.9"
        assert daemon.tokens == ["Bearer good"] * 2


def test_without_profiles_the_command_says_where_they_would_be(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["--profile", "ci", "whoami"])
    assert done.exit_code == 2
    assert f"{tmp_path}/config/wasmkiln/profiles.toml does not exist" in done.stderr
