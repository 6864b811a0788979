"""Right and wrong credentials, by each kind of client, and what the user reads."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from wasmkiln import (
    TLS,
    AsyncClient,
    Client,
    ConnectionFailed,
    CredentialsInvalid,
    CredentialsMissing,
    RoleMissing,
    WasmkilnError,
)

from tests.authority import Authority
from tests.e2e.access_site import Site, access_site
from tests.e2e.daemon import ONE_ENGINE, fresh_state
from tests.e2e.grpcurl import GRPCURL
from tests.e2e.programs import ROOT
from tests.node_package import node_package

PAGE = (ROOT / "docs" / "how-to" / "call-with-credentials.md").read_text()
METHODS = {"capabilities": "GetCapabilities", "stats": "Stats"}
Node = Callable[[str, Mapping[str, str]], str]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    state = fresh_state(folder / "state", own_keys=True, engines=ONE_ENGINE)
    with access_site(folder / "caller", state) as site:
        yield site


@dataclass(frozen=True)
class Wrong:
    """One wrong way to call, and what comes of it."""

    error: type[WasmkilnError]
    sentence: str
    """A pattern of what users of the Python client and its command read."""
    code: int
    """The exit code of the command."""
    others: str
    """A pattern of what users of grpcurl read."""
    node: str
    """A pattern of what users of Node read."""
    tokens: bool = True
    """Whether it calls the address for tokens."""
    tls: bool = True
    ca: str = "ca.pem"
    host: str = ""
    token: str = ""
    method: str = "capabilities"


WRONG = {
    "no credentials": Wrong(
        CredentialsMissing,
        r"cannot tell who calls: send a token .* \(in wasmkiln: token_file or WASMKILN_TOKEN_FILE;"
        r" .*\)",
        6,
        r"Code: Unauthenticated\s+Message: cannot tell who calls: send a token ",
        "CREDENTIALS_MISSING: cannot tell who calls: send a token ",
    ),
    "an unknown token": Wrong(
        CredentialsInvalid,
        r"cannot accept your token: the daemon does not know it; ask its operator for a new one",
        6,
        r"Code: Unauthenticated\s+Message: cannot accept your token: the daemon does not know it",
        "CREDENTIALS_INVALID: cannot accept your token: the daemon does not know it",
        token="unknown.token",
    ),
    "an expired token": Wrong(
        CredentialsInvalid,
        r"cannot accept your token: it has expired; ask for a new one",
        6,
        r"Code: Unauthenticated\s+Message: cannot accept your token: it has expired",
        "CREDENTIALS_INVALID: cannot accept your token: it has expired",
        token="expired.token",
    ),
    "a missing role": Wrong(
        RoleMissing,
        r"cannot .*: it needs the role metrics, which your identity does not have; ask the operator"
        r" of the daemon",
        6,
        r"Code: PermissionDenied\s+Message: cannot .*: it needs the role metrics",
        "ROLE_MISSING: cannot .*: it needs the role metrics",
        token="reader.token",
        method="stats",
    ),
    "plaintext to a TLS port": Wrong(
        ConnectionFailed,
        r"the daemon at \S+ closes connections, so it may speak TLS only: use tls .*",
        3,
        r"Failed to dial target host",
        r"CONNECTION_FAILED: no daemon answers at \S+ \(.*\): .*, or check the address and tls",
        tls=False,
        token="ci.token",
    ),
    "a CA that is not trusted": Wrong(
        ConnectionFailed,
        r"the certificate of the daemon at \S+ is signed by none of the trusted CAs, those in .*",
        3,
        r"certificate signed by unknown authority",
        r"CONNECTION_FAILED: no daemon answers at \S+ \(.*unable to verify the first certificate",
        ca="other/ca.pem",
        token="ci.token",
    ),
    "another host": Wrong(
        ConnectionFailed,
        r"the certificate of the daemon at \S+ is not for kiln\.example\.org: use .*",
        3,
        r"certificate is valid for localhost, not kiln\.example\.org",
        r"CONNECTION_FAILED: no daemon answers at \S+ \(.*does not match certificate's altnames",
        host="kiln.example.org",
        token="ci.token",
    ),
    "no client certificate": Wrong(
        ConnectionFailed,
        r"the daemon at \S+ closes connections without a client certificate: use cert_file .*",
        3,
        r"Failed to dial target host",
        r"CONNECTION_FAILED: no daemon answers at \S+ \(.*\): .*, or check the address and tls",
        tokens=False,
        token="ci.token",
    ),
}


@pytest.fixture(scope="module", autouse=True)
def _wrong_files(site: Site) -> None:
    Authority(site.folder / "other")
    (site.folder / "unknown.token").write_text("wk_0123456789ab_" + "A" * 32)
    (site.folder / "unknown.token").chmod(0o600)
    with Client(
        site.for_tokens, tls=TLS(site.folder / "ca.pem"), token_file=site.folder / "expired.token"
    ) as client:
        cause = ""
        while cause != "expired":
            try:
                client.capabilities()
            except CredentialsInvalid as error:
                cause = error.metadata["cause"]


def address(site: Site, wrong: Wrong) -> str:
    return site.for_tokens if wrong.tokens else site.for_certificates


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("kind", ["Client", "AsyncClient"])
def test_python(site: Site, wrong: Wrong, kind: str) -> None:
    arguments: dict[str, Any] = {
        "address": address(site, wrong),
        "tls": TLS(site.folder / wrong.ca, server_name=wrong.host) if wrong.tls else None,
        "token_file": site.folder / wrong.token if wrong.token else None,
    }

    async def by_loop() -> None:
        async with AsyncClient(**arguments) as client:
            await getattr(client, wrong.method)()

    def by_thread() -> None:
        with Client(**arguments) as client:
            getattr(client, wrong.method)()

    with pytest.raises(wrong.error) as failed:
        by_thread() if kind == "Client" else asyncio.run(by_loop())
    assert re.fullmatch(wrong.sentence, failed.value.message), failed.value.message


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_the_command(site: Site, wrong: Wrong) -> None:
    words = ["--address", address(site, wrong)]
    if wrong.tls:
        words += ["--ca-file", wrong.ca]
        words += ["--server-name", wrong.host] if wrong.host else []
    words += ["--token-file", wrong.token] if wrong.token else []
    command = {"capabilities": "whoami"}.get(wrong.method, wrong.method)
    done = site.run(["wasmkiln", *words, command])
    assert done.returncode == wrong.code
    assert re.fullmatch(f"error: {wrong.sentence}\n", done.stderr), done.stderr


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_grpcurl(site: Site, wrong: Wrong) -> None:
    words = ["-cacert", wrong.ca] if wrong.tls else ["-plaintext"]
    words += ["-authority", wrong.host] if wrong.host else []
    if wrong.token:
        words += ["-expand-headers", "-H", "authorization: Bearer ${TOKEN}"]
    # The messages from files: reflection needs an identity too.
    words += ["-import-path", str(ROOT / "protos"), "-proto", "wasmkiln/v1/module_service.proto"]
    token = (site.folder / wrong.token).read_text().strip() if wrong.token else ""
    done = site.run(
        [
            *(GRPCURL, "-connect-timeout", "5", *words, address(site, wrong)),
            f"wasmkiln.v1.ModuleService/{METHODS[wrong.method]}",
        ],
        {"TOKEN": token},
    )
    assert done.returncode != 0
    assert re.search(wrong.others, done.stderr), done.stderr
    assert not token or token not in done.stdout + done.stderr


def blocks(language: str) -> list[str]:
    """The examples of the page."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def here(site: Site, example: str) -> str:
    """An example with the addresses of the site."""
    grpc = site.for_certificates if "client.pem" in example else site.for_tokens
    return example.replace("localhost:50051", grpc).replace("localhost:9464", site.admin)


def identity(example: str) -> str:
    return "token:ci" if "ci.token" in example else "spiffe://example.org/builder/1"


@pytest.mark.parametrize("example", [each for each in blocks("sh") if "curl --" not in each])
def test_an_example_for_the_shell(site: Site, example: str) -> None:
    done = site.run(["bash", "-euc", here(site, example)])
    assert done.returncode == 0, done.stderr
    assert identity(example) in done.stdout


@pytest.mark.parametrize("example", [each for each in blocks("sh") if "curl --" in each])
def test_an_example_with_curl(site: Site, example: str) -> None:
    done = site.run(["bash", "-euo", "pipefail", "-c", here(site, example)])
    if "ci.token" in example:
        assert done.returncode == 0, done.stderr
        assert "wasmkiln_" in done.stdout
    else:  # without a policy, certificates may compile and no more
        assert done.returncode == 22
        assert "it needs the role metrics" in done.stdout


def test_a_unix_socket_needs_nothing(site: Site) -> None:
    socket = f"unix:{site.folder}/kiln.sock"
    done = site.run(["wasmkiln", "--address", socket, "whoami", "--json"])
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["identity"] == socket
    assert set(answer["roles"]) == {"read", "compile", "admin", "metrics"}
    # A token counts before the socket.
    done = site.run(["wasmkiln", "--address", socket, "--token-file", "reader.token", "whoami"])
    assert "token:reader" in done.stdout


def test_a_certificate_that_is_replaced_serves_the_next_call(site: Site) -> None:
    cert, key = site.folder / "own.pem", site.folder / "own.key"
    second = site.authority.client("second", dns="second.example.org")
    cert.write_bytes(site.client.cert)
    key.write_bytes(site.client.key)
    tls = TLS(site.folder / "ca.pem", cert, key)
    with Client(site.for_certificates, tls=tls) as client:
        assert client.capabilities().caller.identity == "spiffe://example.org/builder/1"
        cert.write_bytes(second.cert)
        assert client.capabilities().caller.identity == "spiffe://example.org/builder/1"
        key.write_bytes(second.key)
        assert client.capabilities().caller.identity == "dns:second.example.org"


@pytest.mark.parametrize("example", blocks("python"))
def test_an_example_in_python(site: Site, example: str) -> None:
    done = site.run(["python", "-c", here(site, example)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == identity(example)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--cacert", "ca.pem"], 22, "cannot tell who calls"),
        (["--cacert", "ca.pem", "-H", "authorization: Bearer wk_no_no"], 22, "does not know it"),
        (["--cacert", "other/ca.pem"], 60, "certificate"),
    ],
)
def test_curl(site: Site, options: list[str], code: int, words: str) -> None:
    done = site.run(["curl", "-sS", "--fail-with-body", *options, f"https://{site.admin}/metrics"])
    assert done.returncode == code
    assert words in done.stdout + done.stderr


def test_curl_in_plaintext(site: Site) -> None:
    done = site.run(["curl", "-sS", "-i", f"http://{site.admin}/metrics"])
    assert (done.returncode, done.stdout) == (52, "")
    assert "Empty reply from server" in done.stderr


@pytest.fixture(scope="module")
def node(site: Site) -> Node:
    """Run a program of Node in the folder, with the client. Return its output."""
    modules = str(node_package().folder / "node_modules")

    def run(program: str, environ: Mapping[str, str]) -> str:
        done = site.run(["node", "-e", program], {**environ, "NODE_PATH": modules})
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.npm
def test_the_example_for_node(site: Site, node: Node) -> None:
    [example] = blocks("js")
    assert node(here(site, example), {}) == "token:ci\n"


# The example, for every way to be wrong.
CALLER = """
const { Client } = require('wasmkiln')
const { ADDRESS, CA, HOST, TOKEN_FILE, METHOD } = process.env
const kiln = new Client(ADDRESS, {
  tls: CA && { ca: CA, serverName: HOST },
  tokenFile: TOKEN_FILE || undefined,
  timeoutMs: 20_000,
})
kiln[METHOD]().catch((error) => console.log(`${error.reason}: ${error.message}`))
  .finally(() => kiln.close())
"""


@pytest.mark.npm
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_node(site: Site, node: Node, wrong: Wrong) -> None:
    shown = node(
        CALLER,
        {
            "ADDRESS": address(site, wrong),
            "CA": wrong.ca if wrong.tls else "",
            "HOST": wrong.host,
            "TOKEN_FILE": wrong.token,
            "METHOD": wrong.method,
        },
    )
    assert re.match(wrong.node, shown), shown
