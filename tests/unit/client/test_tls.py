"""Right and wrong certificates and tokens against real TLS servers, and what the user reads."""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from wasmkiln import (
    TLS,
    AsyncClient,
    Client,
    ConnectionFailed,
    CredentialsInvalid,
    CredentialsMissing,
)
from wasmkiln.cli.app import app

from tests.authority import DAY, Authority, Pair
from tests.unit.client.tls_daemon import TlsDaemon, tls_daemon


@dataclass(frozen=True)
class World:
    """Everything that is right or wrong in one way."""

    ca: Authority
    other: Authority
    server: Pair
    elsewhere: Pair
    expired: Pair
    client: Pair
    stranger: Pair
    outdated: Pair


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("pki")
    ca, other = Authority(folder / "ca"), Authority(folder / "other")
    name = "client.example.org"
    return World(
        ca,
        other,
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


def own(world: World, pair: Pair) -> TLS:
    return TLS(ca_file=world.ca.ca_file, cert_file=pair.cert_file, key_file=pair.key_file)


Serve = Callable[[World], Any]
Files = Callable[[World], TLS | None]


@dataclass(frozen=True)
class Wrong:
    """A way to be wrong, its cause, and the sentence that the user reads."""

    serve: Serve
    tls: Files
    cause: str
    sentence: str


WRONG = {
    "plaintext to a TLS port": Wrong(
        lambda world: tls_daemon(world.server),
        lambda _: None,
        "speaks_tls",
        r"the daemon at \S+ closes connections, so it may speak TLS only: use tls"
        r" \(WASMKILN_TLS=on, and WASMKILN_CA_FILE for its CA\)",
    ),
    "TLS to a plaintext port": Wrong(
        lambda _: tls_daemon(),
        lambda world: TLS(ca_file=world.ca.ca_file),
        "speaks_no_tls",
        r"the daemon at \S+ speaks no TLS: leave out tls .*",
    ),
    "a CA that is not trusted": Wrong(
        lambda world: tls_daemon(world.server),
        lambda world: TLS(ca_file=world.other.ca_file),
        "unknown_ca",
        r"the certificate of the daemon at \S+ is signed by none of the trusted CAs, those in"
        r" \S+ca\.pem: set ca_file \(WASMKILN_CA_FILE\) to the CA of the daemon",
    ),
    "a private CA, with the system's": Wrong(
        lambda world: tls_daemon(world.server),
        lambda _: TLS(),
        "unknown_ca",
        r"the certificate of .* none of the trusted CAs, those of this system: set ca_file .*",
    ),
    "another host": Wrong(
        lambda world: tls_daemon(world.elsewhere),
        lambda world: TLS(ca_file=world.ca.ca_file),
        "wrong_host",
        r"the certificate of the daemon at \S+ is not for 127\.0\.0\.1: use a host that it is for"
        r" in the address, or as server_name \(WASMKILN_SERVER_NAME\)",
    ),
    "an expired certificate": Wrong(
        lambda world: tls_daemon(world.expired),
        lambda world: TLS(ca_file=world.ca.ca_file),
        "certificate_expired",
        r"the certificate of the daemon at \S+ has expired: its operator has to renew it .*",
    ),
    "no client certificate": Wrong(
        lambda world: tls_daemon(world.server, world.ca.ca_file),
        lambda world: TLS(ca_file=world.ca.ca_file),
        "client_certificate_missing",
        r"the daemon at \S+ closes connections without a client certificate: use cert_file and"
        r" key_file .*",
    ),
    "a client certificate by another CA": Wrong(
        lambda world: tls_daemon(world.server, world.ca.ca_file),
        lambda world: own(world, world.stranger),
        "client_certificate_refused",
        r"the daemon at \S+ does not take the client certificate in \S+stranger\.pem: its CA has"
        r" to be one of the daemon's tls_client_ca_file",
    ),
    "an expired client certificate": Wrong(
        lambda world: tls_daemon(world.server, world.ca.ca_file),
        lambda world: own(world, world.outdated),
        "client_certificate_expired",
        r"the client certificate in \S+outdated\.pem has expired: renew it; .*",
    ),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_each_wrong_connection_has_its_sentence(
    world: World, make_client: Callable[..., Any], wrong: Wrong
) -> None:
    with wrong.serve(world) as daemon:
        client = make_client(daemon.address, tls=wrong.tls(world), timeout_s=20)
        with pytest.raises(ConnectionFailed) as failed:
            client.capabilities()
    assert re.fullmatch(wrong.sentence, failed.value.message), failed.value.message
    assert failed.value.metadata["cause"] == wrong.cause
    assert failed.value.metadata["address"] == daemon.address
    assert not daemon.seen


RIGHT: dict[str, tuple[Serve, Files]] = {
    "plaintext": (lambda _: tls_daemon(), lambda _: None),
    "TLS": (
        lambda world: tls_daemon(world.server),
        lambda world: TLS(ca_file=world.ca.ca_file),
    ),
    "TLS by another name": (
        lambda world: tls_daemon(world.elsewhere),
        lambda world: TLS(ca_file=world.ca.ca_file, server_name="kiln.example.org"),
    ),
    "mTLS": (
        lambda world: tls_daemon(world.server, world.ca.ca_file),
        lambda world: own(world, world.client),
    ),
}


@pytest.mark.parametrize(("serve", "files"), RIGHT.values(), ids=RIGHT)
def test_each_right_connection_works_with_a_token(
    world: World, make_client: Callable[..., Any], serve: Serve, files: Files
) -> None:
    with serve(world) as daemon:
        client = make_client(daemon.address, tls=files(world), token="wk_a_secret")
        assert client.capabilities().caller.identity == "token:ci"
        assert daemon.seen == ["Bearer wk_a_secret"]


def test_the_system_s_authorities_are_those_of_ssl_cert_file(
    world: World, make_client: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(world.ca.ca_file))
    with tls_daemon(world.server) as daemon:
        assert make_client(daemon.address, tls=True).capabilities().caller.namespace == "team-a"


def test_a_client_certificate_that_is_replaced_serves_the_next_call(
    world: World, make_client: Callable[..., Any], tmp_path: Path
) -> None:
    cert, key = tmp_path / "own.crt", tmp_path / "own.key"

    def put(pair: Pair) -> None:
        for new, place in ((pair.cert_file, cert), (pair.key_file, key)):
            (tmp_path / "new").write_bytes(new.read_bytes())
            (tmp_path / "new").replace(place)

    put(world.client)
    with tls_daemon(world.server, world.ca.ca_file) as daemon:
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


def test_a_call_that_runs_while_the_files_change_ends_over_its_connection(
    world: World, tmp_path: Path
) -> None:
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(world.ca.ca_file.read_bytes())
    goes_on, begun = threading.Event(), threading.Event()
    with (
        tls_daemon(world.server) as daemon,
        Client(daemon.address, tls=TLS(ca_file=ca_file)) as client,
        ThreadPoolExecutor() as threads,
    ):
        daemon.holds.append((goes_on, begun))
        running = threads.submit(client.capabilities)
        assert begun.wait(30)
        ca_file.write_bytes(world.other.ca_file.read_bytes())
        with pytest.raises(ConnectionFailed, match="signed by none of the trusted CAs"):
            client.capabilities()  # over a new connection, by the new CA
        assert not running.done()
        goes_on.set()
        assert running.result(30).caller.identity == "token:ci"


async def test_the_same_in_an_event_loop(world: World, tmp_path: Path) -> None:
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(world.ca.ca_file.read_bytes())
    goes_on, begun = threading.Event(), threading.Event()
    with tls_daemon(world.server) as daemon:
        async with AsyncClient(daemon.address, tls=TLS(ca_file=ca_file)) as client:
            daemon.holds.append((goes_on, begun))
            running = asyncio.create_task(client.capabilities())
            assert await asyncio.to_thread(begun.wait, 30)
            ca_file.write_bytes(world.other.ca_file.read_bytes())
            with pytest.raises(ConnectionFailed, match="signed by none of the trusted CAs"):
                await client.capabilities()
            assert not running.done()
            goes_on.set()
            assert (await running).caller.identity == "token:ci"


def test_a_token_file_is_read_again(make_client: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    file.chmod(0o600)
    with tls_daemon() as daemon:
        client = make_client(daemon.address, token_file=file)
        client.capabilities()
        file.write_text("second-one\n")
        client.capabilities()
        file.write_text("")
        client.capabilities()
        file.unlink()
        client.capabilities()
        file.write_text("Bearer third")
        client.capabilities()
    last = "Bearer second-one"
    assert daemon.seen == ["Bearer first", last, last, last, "Bearer third"]


def test_a_missing_token_and_a_wrong_one_are_told_at_once(
    make_client: Callable[..., Any],
) -> None:
    with tls_daemon() as daemon:
        daemon.tokens = {"good"}
        with pytest.raises(CredentialsMissing, match=r"who calls\?.*token_file"):
            make_client(daemon.address).capabilities()
        with pytest.raises(CredentialsInvalid) as refused:
            make_client(daemon.address, token="bad-one").capabilities()
        assert refused.value.metadata == {"cause": "unknown"}
        assert make_client(daemon.address, token="good").capabilities()
        assert daemon.seen == ["", "Bearer bad-one", "Bearer good"]  # one attempt each
        assert "bad-one" not in repr(refused.value)


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_the_command_says_the_same_in_one_line(world: World, wrong: Wrong) -> None:
    tls = wrong.tls(world)
    words = ["--tls"] if tls else []
    if tls and tls.ca_file:
        words += ["--ca-file", str(tls.ca_file)]
    if tls and tls.cert_file:
        words += ["--cert-file", str(tls.cert_file), "--key-file", str(tls.key_file)]
    with wrong.serve(world) as daemon:
        done = CliRunner().invoke(app, ["--address", daemon.address, "whoami", *words])
    assert done.exit_code == 3
    assert done.stdout == ""
    assert re.fullmatch(f"error: {wrong.sentence}\n", done.stderr), done.stderr


def test_whoami_by_the_environment(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("good")
    token.chmod(0o600)
    with tls_daemon(world.server, world.ca.ca_file) as daemon:
        daemon.tokens = {"good"}
        for name, value in {
            "ADDRESS": daemon.address,
            "CA_FILE": world.ca.ca_file,
            "CLIENT_CERT_FILE": world.client.cert_file,
            "CLIENT_KEY_FILE": world.client.key_file,
            "TOKEN_FILE": token,
        }.items():
            monkeypatch.setenv(f"WASMKILN_{name}", str(value))
        done = CliRunner().invoke(app, ["whoami"])
        assert done.exit_code == 0, done.stderr
        assert "token:ci" in done.stdout
        assert "read, compile" in done.stdout
        assert "team-a" in done.stdout
        monkeypatch.delenv("WASMKILN_TOKEN_FILE")
        done = CliRunner().invoke(app, ["whoami", "--json"])
        assert done.exit_code == 6
        assert "CREDENTIALS_MISSING" in done.stderr


def test_whoami_by_a_profile(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "config" / "wasmkiln"
    folder.mkdir(parents=True)
    (folder / "ca.pem").write_bytes(world.ca.ca_file.read_bytes())
    (folder / "ci.token").write_text("good")
    (folder / "ci.token").chmod(0o600)
    with tls_daemon(world.elsewhere) as daemon:
        daemon.tokens = {"good"}
        (folder / "profiles.toml").write_text(
            f'[profile.ci]\naddress = "{daemon.address}"\nca_file = "ca.pem"\n'
            'server_name = "kiln.example.org"\ntoken_file = "ci.token"\n'
        )
        done = CliRunner().invoke(app, ["--profile", "ci", "whoami", "--json"])
        assert done.exit_code == 0, done.stderr
        assert '"identity": "token:ci"' in done.stdout
        with Client(profile="ci") as client:
            assert client.capabilities().caller.identity == "token:ci"
        listed = CliRunner().invoke(app, ["profiles", "--json"])
        assert json.loads(listed.stdout)["profiles"] == [
            {
                "name": "ci",
                "address": daemon.address,
                "tls": True,
                "cert_file": "",
                "token_file": str(folder / "ci.token"),
                "namespace": "",
            }
        ]
        assert str(folder / "ci.token") in CliRunner().invoke(app, ["profiles"]).stdout


def test_without_profiles_the_command_says_where_they_would_be(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["profiles"])
    assert done.exit_code == 2
    assert f"{tmp_path}/config/wasmkiln/profiles.toml does not exist" in done.stderr


@pytest.fixture
def daemons(world: World) -> Iterator[list[TlsDaemon]]:
    with tls_daemon(world.server) as one:
        yield [one]


def test_a_daemon_s_own_certificate_may_change_between_calls(
    world: World, daemons: list[TlsDaemon], make_client: Callable[..., Any]
) -> None:
    [daemon] = daemons
    client = make_client(daemon.address, tls=TLS(ca_file=world.ca.ca_file))
    client.capabilities()
    daemon.pair = world.ca.server("renewed")
    client.capabilities()
    assert make_client(daemon.address, tls=TLS(ca_file=world.ca.ca_file)).capabilities()
