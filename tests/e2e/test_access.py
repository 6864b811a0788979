"""Tokens and the policy in a running daemon: who gets in, and from when on not any more."""

from __future__ import annotations

import hashlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from wasmkiln.v1 import admin_service_pb2 as admin_pb
from wasmkiln.v1 import admin_service_pb2_grpc, module_service_pb2_grpc
from wasmkiln.v1 import module_service_pb2 as pb

from tests.e2e import wasm
from tests.e2e.bearers import Metadata, add_token, bearer, listed_tokens, token_command, verdict
from tests.e2e.daemon import ONE_ENGINE, RedisDaemon, fresh_state
from tests.e2e.processes import eventually
from tests.e2e.programs import WASMKILND, Installed

FLAGS = ("--workers", "1", "--redis-url", "none")


class Stubs:
    """The services of a daemon, over one connection."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address)
        self.modules = module_service_pb2_grpc.ModuleServiceStub(self.channel)
        self.admin = admin_service_pb2_grpc.AdminServiceStub(self.channel)

    def compile(self, module: bytes | str, metadata: Metadata = (), **fields: object) -> str:
        """Return the verdict of a Compile call."""
        source = {"sha256": module} if isinstance(module, str) else {"module": module}
        request = pb.CompileRequest(**source, **fields)  # type: ignore[arg-type]
        return verdict(self.modules.Compile, request, metadata)

    def load(self, module: bytes, metadata: Metadata = ()) -> str:
        """Return the verdict of a Load call."""
        return verdict(self.modules.Load, pb.LoadRequest(module=module), metadata)

    def capabilities(self, metadata: Metadata = ()) -> str:
        """Return the verdict of a GetCapabilities call."""
        return verdict(self.modules.GetCapabilities, pb.GetCapabilitiesRequest(), metadata)

    def evict(self, metadata: Metadata = ()) -> str:
        """Return the verdict of an Evict call."""
        request = admin_pb.EvictRequest(module_sha256="0" * 64)
        return verdict(self.admin.Evict, request, metadata)


@pytest.fixture
def daemon(lean_state_dir: Path) -> Iterator[RedisDaemon]:
    with RedisDaemon(lean_state_dir, FLAGS) as one:
        yield one


@pytest.fixture(scope="module")
def closed_daemon(
    engines: Installed, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisDaemon]:
    """A daemon that has asked for tokens before; each test adds its own."""
    state = fresh_state(tmp_path_factory.mktemp("closed") / "state", engines=ONE_ENGINE)
    add_token(state, "first", "read")
    with RedisDaemon(state, FLAGS) as one:
        yield one


@pytest.fixture
def closed_stubs(closed_daemon: RedisDaemon) -> Iterator[Stubs]:
    one = Stubs(closed_daemon.address)
    with one.channel:
        yield one


@pytest.fixture
def stubs(daemon: RedisDaemon) -> Iterator[Stubs]:
    one = Stubs(daemon.address)
    with one.channel:
        yield one


def reload(daemon: RedisDaemon) -> None:
    """Send SIGHUP, and wait until it is answered."""
    seen = daemon.log.count('"reloaded"')
    daemon.process.send_signal(signal.SIGHUP)
    eventually(lambda: daemon.log.count('"reloaded"') > seen, "no answer to SIGHUP", 60)


def test_of_two_tokens_none_counts(closed_daemon: RedisDaemon, closed_stubs: Stubs) -> None:
    daemon, stubs = closed_daemon, closed_stubs
    one, other = (bearer(add_token(daemon.state_dir, name, "read")) for name in ("a", "b"))
    reload(daemon)
    assert stubs.capabilities(one) == stubs.capabilities(other) == ""
    # A proxy may have let the call in by either.
    for two in ((*one, *other), (*one, ("authorization", "")), (*one, *one)):
        assert stubs.capabilities(two) == "CREDENTIALS_INVALID"


def test_the_first_token_closes_a_running_daemon_and_the_last_does_not_open_it(
    daemon: RedisDaemon, stubs: Stubs
) -> None:
    state = daemon.state_dir
    module = wasm.adder(1)
    assert stubs.compile(module) == ""

    builder = bearer(add_token(state, "ci", "compile"))
    eventually(lambda: stubs.capabilities() == "CREDENTIALS_MISSING", "still open", 60)
    assert stubs.compile(module) == "CREDENTIALS_MISSING"
    assert stubs.compile(module, builder) == ""
    assert stubs.evict(builder) == "ROLE_MISSING admin"
    ops = bearer(add_token(state, "ops", "admin"))
    reload(daemon)
    assert stubs.evict(ops) == ""
    assert stubs.compile(module, ops) == "ROLE_MISSING read"

    for row in listed_tokens(state):
        token_command(state, "revoke", row["id"])
    reload(daemon)
    for metadata in (builder, ops):
        assert stubs.capabilities(metadata) == "CREDENTIALS_INVALID"
    assert stubs.capabilities() == "CREDENTIALS_MISSING"


def test_a_revoked_token_ceases_to_count_without_a_signal(
    closed_daemon: RedisDaemon, closed_stubs: Stubs
) -> None:
    daemon, stubs = closed_daemon, closed_stubs
    text = add_token(daemon.state_dir, "brief-ci", "compile")
    ci = bearer(text)
    eventually(lambda: stubs.capabilities(ci) == "", "it does not count yet", 60)
    token_command(daemon.state_dir, "revoke", "brief-ci")
    eventually(lambda: stubs.capabilities(ci) == "CREDENTIALS_INVALID", "it still counts", 60)
    assert text.split("_")[2] not in daemon.log


def test_an_expired_token_ceases_to_count(closed_daemon: RedisDaemon, closed_stubs: Stubs) -> None:
    daemon, stubs = closed_daemon, closed_stubs
    brief = bearer(add_token(daemon.state_dir, "brief", "read", expires="4s"))
    reload(daemon)
    eventually(lambda: stubs.capabilities(brief) == "CREDENTIALS_INVALID", "it still counts", 60)


def test_a_broken_file_changes_nothing_and_is_logged_once(
    daemon: RedisDaemon, stubs: Stubs
) -> None:
    ci = bearer(add_token(daemon.state_dir, "ci", "compile"))
    reload(daemon)
    file = daemon.state_dir / "access" / "tokens.json"
    good = file.read_bytes()
    file.write_bytes(good[: len(good) // 2])
    daemon.wait_for_log("cannot read changed files: they change nothing")
    assert stubs.capabilities(ci) == ""
    assert stubs.capabilities() == "CREDENTIALS_MISSING"
    assert daemon.log.count("cannot read changed files") == 1

    file.unlink()  # Without the file a daemon that starts would let everybody in.
    reload(daemon)
    assert stubs.capabilities() == "CREDENTIALS_MISSING"
    assert stubs.capabilities(ci) == "CREDENTIALS_INVALID"


def test_a_broken_policy_keeps_no_revoked_token(lean_state_dir: Path, tmp_path: Path) -> None:
    add_token(lean_state_dir, "lost", "compile")
    lost = bearer(add_token(lean_state_dir, "lost", "compile"))
    kept = bearer(add_token(lean_state_dir, "kept", "compile"))
    file = policy(tmp_path, "")
    with RedisDaemon(lean_state_dir, [*FLAGS, "--policy-file", str(file)]) as daemon:
        stubs = Stubs(daemon.address)
        with stubs.channel:
            file.write_text("[[rule]]\nidentity = 1")
            daemon.wait_for_log("cannot read changed files: they change nothing")
            token_command(lean_state_dir, "revoke", "lost")
            eventually(lambda: stubs.capabilities(lost) == "CREDENTIALS_INVALID", "it counts", 60)
            assert stubs.capabilities(kept) == ""
            assert daemon.log.count("cannot read changed files") == 1
            assert "files read again" not in daemon.log


SLIP = f"[quota.small]\ncalls_per_minute = {'9' * 5000}\n"


def test_a_slip_in_the_policy_keeps_nothing_else_from_being_read(
    lean_state_dir: Path, tmp_path: Path
) -> None:
    one = bearer(add_token(lean_state_dir, "one", "compile"))
    other = bearer(add_token(lean_state_dir, "other", "compile"))
    file = policy(tmp_path, '[[rule]]\nidentity = "token:three"\nroles = ["read"]\n')
    with RedisDaemon(lean_state_dir, [*FLAGS, "--policy-file", str(file)]) as daemon:
        stubs = Stubs(daemon.address)
        with stubs.channel:
            file.write_text(SLIP)
            line = daemon.wait_for_log("cannot read changed files: they change nothing")
            assert f"cannot use policy {file}: not valid TOML: a number does not" in line
            token_command(lean_state_dir, "revoke", "one")
            eventually(lambda: stubs.capabilities(one) == "CREDENTIALS_INVALID", "it counts", 60)
            three = bearer(add_token(lean_state_dir, "three", "metrics"))
            # With the role of the policy before the slip.
            eventually(lambda: stubs.capabilities(three) == "", "a new token does not count", 60)

            daemon.process.send_signal(signal.SIGHUP)
            line = daemon.wait_for_log("cannot reload: what cannot be used stays as it was")
            assert f"cannot use policy {file}: not valid TOML: a number does not" in line
            assert stubs.capabilities(other) == ""
            file.write_text("")
            reload(daemon)
            token_command(lean_state_dir, "revoke", "other")
            eventually(lambda: stubs.capabilities(other) == "CREDENTIALS_INVALID", "it counts", 60)
            assert "defect" not in daemon.log


def policy(daemon_or_folder: Path, text: str) -> Path:
    path = daemon_or_folder / "policy.toml"
    path.write_text(text)
    return path


def test_the_policy_decides_and_is_read_again_when_it_changes(
    lean_state_dir: Path, tmp_path: Path
) -> None:
    file = policy(tmp_path, '[[rule]]\nidentity = "anonymous"\nroles = ["read"]\n')
    with RedisDaemon(lean_state_dir, [*FLAGS, "--policy-file", str(file)]) as daemon:
        stubs = Stubs(daemon.address)
        with stubs.channel:
            assert stubs.capabilities() == ""
            assert stubs.load(wasm.adder(1)) == "ROLE_MISSING compile"

            policy(tmp_path, '[[rule]]\nidentity = "anonymous"\nroles = ["compile"]\n')
            eventually(lambda: stubs.load(wasm.adder(1)) == "", "the old policy counts", 60)
            policy(tmp_path, "[[rule]]\n")
            daemon.wait_for_log("rule 1: it is about nobody")
            assert stubs.load(wasm.adder(1)) == ""
            policy(tmp_path, "")
            reload(daemon)
            assert stubs.load(wasm.adder(1)) == "CREDENTIALS_MISSING"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            '[[rule]]\nidentity = "token:a"\nroles = ["reed"]\n',
            "rule 1 roles 1: it should be 'read', 'compile', 'admin' or 'metrics'",
        ),
        (SLIP, "not valid TOML: a number does not fit into 64 bits"),
    ],
    ids=["role", "number"],
)
@pytest.mark.parametrize(("command", "code"), [("serve", 1), ("config", 2)])
def test_a_broken_policy_stops_the_daemon_and_the_check(
    command: str, code: int, text: str, problem: str, lean_state_dir: Path, tmp_path: Path
) -> None:
    file = policy(tmp_path, text)
    words = [*("--state-dir", str(lean_state_dir)), *("--policy-file", str(file)), *FLAGS]
    words += ["--listen", "127.0.0.1:0", "--admin-listen", "none"]
    done = subprocess.run(
        [WASMKILND, command, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == code
    assert f"error: cannot use policy {file}: {problem}" in done.stderr
    assert "Traceback" not in done.stderr


def test_health_is_open_only_if_asked(lean_state_dir: Path, tmp_path: Path) -> None:
    add_token(lean_state_dir, "ci", "compile")
    for text, expected in (("", "CREDENTIALS_MISSING"), ("open_health = true", "")):
        flags = [*FLAGS, "--policy-file", str(policy(tmp_path, text))]
        with RedisDaemon(lean_state_dir, flags) as daemon:
            health = grpc.insecure_channel(daemon.address)
            with health:
                check = health.unary_unary("/grpc.health.v1.Health/Check")
                assert verdict(check, b"") == expected
                assert Stubs(daemon.address).capabilities() == "CREDENTIALS_MISSING"


def test_who_may_only_read_gets_hits_and_has_nothing_compiled(
    closed_daemon: RedisDaemon, closed_stubs: Stubs
) -> None:
    daemon, stubs = closed_daemon, closed_stubs
    builder = bearer(add_token(daemon.state_dir, "ci", "compile"))
    reader = bearer(add_token(daemon.state_dir, "host", "read"))
    reload(daemon)
    module, other = wasm.adder(1), wasm.adder(2)
    digest, unknown = hashlib.sha256(module).hexdigest(), hashlib.sha256(other).hexdigest()

    assert stubs.load(module, builder) == ""
    assert stubs.compile(digest, reader) == "ROLE_MISSING compile"
    assert stubs.compile(unknown, reader) == "ROLE_MISSING compile"
    assert stubs.compile(digest, builder) == ""
    assert stubs.compile(digest, reader) == ""
    assert stubs.compile(module, reader) == "ROLE_MISSING compile"
    assert stubs.compile(digest, reader, skip_cache_lookup=True) == "ROLE_MISSING compile"
    assert stubs.compile(digest, reader, accept_fast=True) == ""

    answer = stubs.modules.GetCapabilities(pb.GetCapabilitiesRequest(), metadata=reader)
    assert answer.caller.identity == "token:host"
    assert list(answer.caller.roles) == ["read"]
