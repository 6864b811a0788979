"""How a client chooses its address, TLS, token and limits; and that no token is ever shown."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
from wasmkiln import TLS, Client
from wasmkiln.client import choose_max_artifact_bytes, choose_timeout_s
from wasmkiln.credentials import (
    Access,
    choose_address,
    profiles_file,
    read_profile,
)

from tests.authority import Authority

SECRET = "wk_ci_0123456789abcdef"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("WASMKILN_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.touch(0o600)
    file.write_text(SECRET)
    return file


def write_profiles(tmp_path: Path, text: str) -> Path:
    (tmp_path / "wasmkiln").mkdir(exist_ok=True)
    file = tmp_path / "wasmkiln" / "profiles.toml"
    file.write_text(text)
    return file


def test_without_anything_it_is_plaintext_and_nobody() -> None:
    access = Access.choose()
    assert (access.address, access.tls, access.metadata()) == ("127.0.0.1:50051", None, ())


def test_the_environment_says_all(monkeypatch: pytest.MonkeyPatch, token_file: Path) -> None:
    for name, value in {
        "WASMKILN_ADDRESS": "kiln.example:1",
        "WASMKILN_CA_FILE": "ca",
        "WASMKILN_CLIENT_CERT_FILE": "cert",
        "WASMKILN_CLIENT_KEY_FILE": "key",
        "WASMKILN_SERVER_NAME": "name",
        "WASMKILN_TOKEN_FILE": str(token_file),
    }.items():
        monkeypatch.setenv(name, value)
    access = Access.choose()
    assert access.address == "kiln.example:1"
    assert access.tls == TLS("ca", "cert", "key", "name")
    assert access.metadata() == (("authorization", f"Bearer {SECRET}"),)
    assert Access.choose("localhost:1", tls=False).tls is None
    assert Access.choose(tls=TLS("mine")).tls == TLS("mine")
    assert Access.choose(tls=True).tls == access.tls
    assert Access.choose("unix:/run/kiln.sock").tls is None  # no Unix socket speaks TLS
    monkeypatch.setenv("WASMKILN_TLS", "off")
    assert Access.choose("localhost:1").tls is None
    monkeypatch.setenv("WASMKILN_TLS", "maybe")
    with pytest.raises(ValueError, match="WASMKILN_TLS has to be on or off, not 'maybe'"):
        Access.choose()


def test_a_profile_wins_over_the_environment_and_an_argument_over_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token_file: Path
) -> None:
    file = write_profiles(
        tmp_path,
        f'[profile.prod]\naddress = "kiln.example:1"\nca_file = "ca.pem"\n'
        f'token_file = "{token_file}"\nnamespace = "team-a"\ntrusted_keys = "{"ab" * 32}"\n'
        '[profile.local]\naddress = "unix:/run/kiln.sock"\n',
    )
    assert profiles_file() == file
    monkeypatch.setenv("WASMKILN_TOKEN", "for-another-daemon")
    monkeypatch.setenv("WASMKILN_ADDRESS", "other.example:1")
    access = Access.choose(profile="prod")
    assert access.address == "kiln.example:1"
    assert access.tls == TLS(ca_file=str(tmp_path / "wasmkiln" / "ca.pem"))
    assert access.metadata() == (("authorization", f"Bearer {SECRET}"),)
    assert (access.namespace, access.trusted_keys) == ("team-a", ("ab" * 32,))
    monkeypatch.setenv("WASMKILN_PROFILE", "local")
    local = Access("unix:/run/kiln.sock")
    assert Access.choose() == local  # without the token for another daemon
    other = Access.choose("unix:/else", namespace="b")
    assert (other.address, other.namespace, other.credentials) == ("unix:/else", "b", None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"has no \[profile\.prod\]: it has none"),
        ("[profile.dev]\n[profile.test]\n", r"has no \[profile\.prod\]: it has dev, test"),
        ("[profile.prod]\n", "expected a table with an address"),
        ("[profile]\nprod = 1\n", "expected a table"),
        ("profile = 1\n", r"expected tables \[profile.NAME\]"),
        ("[prod]\naddress = 'a:1'\n", r"expected tables \[profile.NAME\], not prod"),
        ("[profile.prod]\naddress = 'a:1'\nca = 'x'\n", "unknown key ca: it may have address, "),
        ("[profile.prod]\naddress = 1\n", "address has the wrong type"),
        (
            "[profile.prod]\naddress = 'a:1'\ntrusted_keys = [1]\n",
            "trusted_keys has the wrong type",
        ),
        (
            f"[profile.prod]\naddress = 'a:1'\ntoken = '{SECRET}'\n",
            "unknown key token: it may have address",
        ),
        ("[profile.prod]\naddress = 'a:1'\ncert_file = 'c'\n", "key_file is missing"),
        ("[profile.prod", "it is not TOML"),
    ],
)
def test_a_wrong_profile_has_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    file = write_profiles(tmp_path, text)
    with pytest.raises(ValueError, match=words) as wrong:
        read_profile("prod")
    assert str(file) in str(wrong.value)
    assert SECRET not in str(wrong.value)
    assert "\n" not in str(wrong.value)


def test_a_token_goes_over_plaintext_to_this_machine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("localhost:1", "127.0.0.1:1", "[::1]:1", "unix:/run/kiln.sock"):
        assert Access.choose(address, token=SECRET).credentials
    with pytest.raises(ValueError, match=r"cannot send a token to kiln:1 without TLS") as wrong:
        Access.choose("kiln:1", token=SECRET)
    assert SECRET not in str(wrong.value)
    assert Access.choose("kiln:1", token=SECRET, tls=TLS()).credentials
    # A machine of that name, and no socket.
    assert Access.choose("unixprod:1", token=SECRET, tls=True).tls == TLS()
    for socket in ("unix:/run/kiln.sock", "unix-abstract:kiln"):
        with pytest.raises(ValueError, match="a Unix socket speaks no TLS"):
            Access.choose(socket, tls=True)
    assert Access.choose("kiln:1", token=SECRET, token_over_plaintext=True).credentials
    monkeypatch.setenv("WASMKILN_TOKEN_OVER_PLAINTEXT", "on")
    assert Access.choose("kiln:1", token=SECRET).credentials


@pytest.mark.parametrize("text", ["", " \n", "two words", "line\nbreak", "é", "x" * 8000, "\x1b[m"])
def test_what_is_no_token_is_refused_and_not_shown(text: str, token_file: Path) -> None:
    token_file.write_text(text)
    for given, what in (
        ({"token": text}, "the token"),
        ({"token_file": token_file}, f"the token in {token_file}"),
    ):
        with pytest.raises(ValueError, match=f"cannot use {what}: ") as wrong:
            Access.choose(**given)
        assert text.strip() == "" or text not in str(wrong.value)


def test_no_repr_shows_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WASMKILN_TOKEN", SECRET)
    access = Access.choose()
    client = Client()
    shown = [repr(each) for each in (access, access.credentials, vars(client))]
    client.close()
    assert not [each for each in shown if SECRET in each]


def test_a_token_that_every_user_can_read_is_warned_of(
    token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Access.choose(token_file=token_file)
    assert not caplog.records
    token_file.chmod(0o644)
    with caplog.at_level(logging.WARNING, "wasmkiln"):
        Access.choose(token_file=token_file)
    assert [record.message for record in caplog.records] == [
        f"every user of this machine can read the token in {token_file}: chmod 600 it"
    ]


@pytest.mark.parametrize(
    ("given", "kind", "says"),
    [
        *(
            ({"namespace": name}, ValueError, "a namespace")
            for name in ("Team", "a_b", "-a", "a" * 64, "a/b", "..")
        ),
        ({"tls": "ca.pem"}, TypeError, r"write TLS\(ca_file=…\)"),
        ({"address": "unix:/run/kiln.sock", "tls": True}, ValueError, "speaks no TLS: leave out"),
        ({"token": SECRET, "token_file": "f"}, ValueError, "give one of them"),
        ({"token_file": "/none"}, FileNotFoundError, "/none"),
        ({"profile": "prod"}, ValueError, r"there are no profiles: .* does not exist; write it"),
    ],
)
def test_arguments_that_cannot_be_used(
    given: dict[str, Any], kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=says):
        Access.choose(**given)


def test_files_that_are_not_what_they_should_be_are_told_at_once(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    one, two = (authority.client(name, dns="a") for name in ("one", "two"))
    text = tmp_path / "text"
    text.write_text("hello")
    large = tmp_path / "large"
    large.write_bytes(bytes(2**20 + 1))
    ca = authority.ca_file
    for tls, words in (
        (TLS(ca_file=text), "cannot use .*text: expected CAs in PEM"),
        (TLS(ca_file=large), "cannot use .*large: it is larger than 1 MiB"),
        (TLS(ca, one.cert_file, two.key_file), "expected a certificate and the key of it in PEM"),
        (TLS(ca, text, one.key_file), "expected a certificate and the key of it in PEM"),
    ):
        with pytest.raises(ValueError, match=words):
            Client("localhost:1", tls=tls)
    with pytest.raises(FileNotFoundError):
        Client("localhost:1", tls=TLS(ca_file=tmp_path / "none"))
    with pytest.raises(ValueError, match="both of its files: cert_file is missing"):
        TLS(key_file="key")


# --- numbers and addresses ------------------------------------------------------------------


def test_argument_environment_and_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for choose, default, variable, text, value, argument in (
        (choose_max_artifact_bytes, 2**30, "MAX_ARTIFACT_BYTES", " 1.5GiB ", 3 * 2**29, 7),
        (choose_timeout_s, 60, "TIMEOUT_S", "2.5", 2.5, 9),
    ):
        assert choose(None) == default
        monkeypatch.setenv(f"WASMKILN_{variable}", text)
        assert choose(None) == value
        assert choose(argument) == argument
    assert choose_timeout_s(1e300) == 365 * 24 * 3600
    assert choose_address("") == "127.0.0.1:50051"
    monkeypatch.setenv("WASMKILN_ADDRESS", "unix:/run/kiln.sock")
    assert choose_address("") == "unix:/run/kiln.sock"


def test_an_address_is_grpc_s_and_has_a_port() -> None:
    for address in ("[::1]:50051", "dns:///kiln", "ipv4:127.0.0.1:1", "kiln:65535", "unix:///k.s"):
        assert choose_address(address) == address
    bad = ("localhost", "10.0.0.1", "h:0", "h:99999", "h:http", ":1", "http://h:50051")
    for address in (*bad, "ring:a:1,b:2"):
        with pytest.raises(ValueError, match="with a port from 1 to 65535"):
            choose_address(address)


SIZES = (0, -1, True, 1.5, "big", "1.0001KiB", "1TiB", "9" * 30)


@pytest.mark.parametrize(
    ("name", "values"),
    [("max_artifact_bytes", SIZES), ("timeout_s", (0, -1, float("nan"), float("inf")))],
)
def test_an_impossible_number_names_where_it_stands(
    monkeypatch: pytest.MonkeyPatch, name: str, values: tuple[Any, ...]
) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"^{name}"):
            Client(**{name: value})
    for text in (*values, "soon"):
        monkeypatch.setenv(f"WASMKILN_{name.upper()}", str(text))
        with pytest.raises(ValueError, match=f"^WASMKILN_{name.upper()}"):
            Client()
    with pytest.raises(ValueError, match="max_attempts"):
        Client(max_attempts=0)
