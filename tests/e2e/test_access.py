"""Tokens and the policy in a running daemon: who gets in, and from when on not any more."""

from __future__ import annotations

import json
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import grpc
import pytest
from wasmkiln.v1 import admin_service_pb2 as admin_pb
from wasmkiln.v1 import admin_service_pb2_grpc, module_service_pb2_grpc
from wasmkiln.v1 import module_service_pb2 as pb

from tests.e2e import wasm
from tests.e2e.bearers import Metadata, add_token, bearer, reload, token_command, verdict
from tests.e2e.daemon import ONE_ENGINE, RedisDaemon, fresh_state
from tests.e2e.processes import eventually
from tests.e2e.programs import Installed

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def evict(self, metadata: Metadata = ()) -> str:
        """Return the verdict of an Evict call."""
        request = admin_pb.EvictRequest(module_sha256="0" * 64)
        return verdict(self.admin.Evict, request, metadata)


@pytest.fixture
def daemon(lean_state_dir: Path) -> Iterator[RedisDaemon]:
    with RedisDaemon(lean_state_dir, FLAGS) as one:
        yield one


@pytest.fixture(scope="module")
def closed(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisDaemon]:
    """A daemon that has asked for tokens before; each test adds its own."""
    state = fresh_state(tmp_path_factory.mktemp("closed") / "state", engines=ONE_ENGINE)
    add_token(state, "first", "read")
    with RedisDaemon(state, FLAGS) as one:
        yield one


def test_of_two_tokens_none_counts(closed: RedisDaemon) -> None:
    one, other = (bearer(add_token(closed.state_dir, name, "read")) for name in ("a", "b"))
    reload(closed)
    with Stubs(closed.address) as stubs:
        assert stubs.capabilities(one) == stubs.capabilities(other) == ""
        # A proxy may have let the call in by either.
        for two in ((*one, *other), (*one, ("authorization", "")), (*one, *one)):
            assert stubs.capabilities(two) == "CREDENTIALS_INVALID"


def test_the_first_token_closes_a_running_daemon_and_the_last_does_not_open_it(
    daemon: RedisDaemon,
) -> None:
    state, module = daemon.state_dir, wasm.adder(1)
    with Stubs(daemon.address) as stubs:
        assert stubs.compile(module) == ""

        builder = bearer(add_token(state, "ci", "compile"))
        eventually(lambda: stubs.capabilities() == "CREDENTIALS_MISSING", "still open")
        # The probes of its pod have no token: without a policy, health stays open.
        check = stubs.channel.unary_unary("/grpc.health.v1.Health/Check")
        assert verdict(check, b"") == ""
        with urllib.request.urlopen(f"{daemon.admin_url}/readyz", timeout=30) as ready:
            assert ready.status == 200
        assert stubs.compile(module) == "CREDENTIALS_MISSING"
        assert stubs.compile(module, builder) == ""
        assert stubs.evict(builder) == "ROLE_MISSING admin"
        ops = bearer(add_token(state, "ops", "admin"))
        reload(daemon)
        assert stubs.evict(ops) == ""
        assert stubs.compile(module, ops) == "ROLE_MISSING read"

        file = state / "access" / "tokens.json"
        good = file.read_bytes()
        file.write_bytes(good[: len(good) // 2])  # It changes nothing, and is logged once.
        daemon.wait_for_log("cannot read changed files: they change nothing")
        assert stubs.capabilities(builder) == ""
        assert stubs.capabilities() == "CREDENTIALS_MISSING"
        assert daemon.log.count("cannot read changed files") == 1
        file.write_bytes(good)

        for row in json.loads(token_command(state, "ls", "--json")):
            token_command(state, "revoke", row["id"])
        for removed in (False, True):
            if removed:
                file.unlink()  # Without it a daemon that starts would let everybody in.
            reload(daemon)
            for metadata in (builder, ops):
                assert stubs.capabilities(metadata) == "CREDENTIALS_INVALID"
            assert stubs.capabilities() == "CREDENTIALS_MISSING"
            assert verdict(check, b"") == ""


def test_a_token_ceases_to_count_without_a_signal(closed: RedisDaemon) -> None:
    """It is revoked, or expires."""
    text = add_token(closed.state_dir, "brief-ci", "compile")
    ci, brief = (bearer(t) for t in (text, add_token(closed.state_dir, "b", "read", expires="4s")))
    with Stubs(closed.address) as stubs:
        eventually(lambda: stubs.capabilities(ci) == "", "it does not count yet")
        token_command(closed.state_dir, "revoke", "brief-ci")
        for metadata in (ci, brief):
            eventually(lambda m=metadata: stubs.capabilities(m) == "CREDENTIALS_INVALID", "counts")  # type: ignore[misc]
    assert text.split("_")[2] not in closed.log


def test_the_policy_is_read_again_and_a_slip_keeps_nothing_else_from_being_read(
    lean_state_dir: Path, tmp_path: Path
) -> None:
    one, other = (bearer(add_token(lean_state_dir, name, "compile")) for name in ("one", "other"))
    file, anonymous = tmp_path / "policy.toml", '[[rule]]\nidentity = "anonymous"\nroles = {}\n'
    file.write_text(anonymous.format('["read"]'))
    health = "/grpc.health.v1.Health/Check"
    with (
        RedisDaemon(lean_state_dir, [*FLAGS, "--policy-file", str(file)]) as daemon,
        Stubs(daemon.address) as stubs,
    ):
        assert stubs.capabilities() == ""
        assert stubs.load(wasm.adder(1)) == "ROLE_MISSING compile"
        file.write_text(anonymous.format('["compile"]'))
        eventually(lambda: stubs.load(wasm.adder(1)) == "", "the old policy counts")
        file.write_text('[[rule]]\nidentity = "token:three"\nroles = ["read"]\n')
        reload(daemon)
        assert stubs.load(wasm.adder(1)) == "CREDENTIALS_MISSING"
        check = stubs.channel.unary_unary(health)
        assert verdict(check, b"") == "CREDENTIALS_MISSING"

        file.write_text(f"[quota.small]\ncalls_per_minute = {'9' * 5000}\n")
        line = daemon.wait_for_log("cannot read changed files: they change nothing")
        assert f"cannot use policy {file}: not valid TOML: a number does not" in line
        read_again = daemon.log.count("files read again")
        token_command(lean_state_dir, "revoke", "one")
        three = bearer(add_token(lean_state_dir, "three", "metrics"))
        eventually(lambda: stubs.capabilities(one) == "CREDENTIALS_INVALID", "it counts")
        # With the role of the policy before the slip.
        eventually(lambda: stubs.capabilities(three) == "", "a new token does not count")
        assert stubs.compile("0" * 64, three) == "ROLE_MISSING compile"
        assert daemon.log.count("cannot read changed files") == 1
        assert daemon.log.count("files read again") == read_again

        daemon.process.send_signal(signal.SIGHUP)
        line = daemon.wait_for_log("cannot reload: what cannot be used stays as it was")
        assert f"cannot use policy {file}: not valid TOML: a number does not" in line
        assert stubs.capabilities(other) == ""
        file.write_text("open_health = true")
        token_command(lean_state_dir, "revoke", "other")
        reload(daemon)
        assert verdict(check, b"") == ""
        assert stubs.capabilities() == "CREDENTIALS_MISSING"
        assert stubs.capabilities(other) == "CREDENTIALS_INVALID"
        assert "defect" not in daemon.log


def test_who_may_only_read_gets_hits_and_has_nothing_compiled(closed: RedisDaemon) -> None:
    builder = bearer(add_token(closed.state_dir, "ci", "compile"))
    reader = bearer(add_token(closed.state_dir, "host", "read"))
    reload(closed)
    module = wasm.adder(1)
    digest, unknown = wasm.digest(module), wasm.digest(wasm.adder(2))
    refused = "ROLE_MISSING compile"
    with Stubs(closed.address) as stubs:
        assert stubs.load(module, builder) == ""
        assert stubs.compile(digest, reader) == refused
        assert stubs.compile(unknown, reader) == refused
        assert stubs.compile(digest, builder) == ""
        assert stubs.compile(digest, reader) == ""
        assert stubs.compile(module, reader) == refused
        assert stubs.compile(digest, reader, skip_cache_lookup=True) == refused
        assert stubs.compile(digest, reader, accept_fast=True) == ""
        answer = stubs.modules.GetCapabilities(pb.GetCapabilitiesRequest(), metadata=reader)
        assert answer.caller.identity == "token:host"
        assert list(answer.caller.roles) == ["read"]
