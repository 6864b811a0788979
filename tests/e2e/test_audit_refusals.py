"""Who was refused, and what changed about who may do what: the audit tells both, and no secret."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from wasmkiln.v1 import admin_service_pb2 as admin_pb
from wasmkiln.v1 import admin_service_pb2_grpc
from wasmkiln.v1 import module_service_pb2 as pb

from tests.e2e import wasm
from tests.e2e.bearers import Metadata, add_token, bearer, reload, token_command, verdict
from tests.e2e.callers import Caller, outcome_of
from tests.e2e.daemon import ONE_ENGINE, RedisDaemon, fresh_state
from tests.e2e.programs import Installed

LINES = 100


class Audited:
    """A daemon that asks for tokens, and its audit."""

    def __init__(self, folder: Path) -> None:
        self.state = fresh_state(folder / "state", engines=ONE_ENGINE)
        self.path = folder / "audit.jsonl"
        self.policy = folder / "policy.toml"
        self.policy.write_text("")
        self.operator = add_token(self.state, "operator", "admin", "metrics", "compile")
        self.reader = add_token(self.state, "reader", "read")
        flags = ("--workers", "1", "--redis-url", "none", "--audit-file", str(self.path))
        self.daemon = RedisDaemon(self.state, (*flags, "--policy-file", str(self.policy)))

    def lines(self, event: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.path.read_text().splitlines()]
        return [line for line in found if line["event"] == event]

    def evict(self, metadata: Metadata) -> str:
        with grpc.insecure_channel(self.daemon.address) as channel:
            stub = admin_service_pb2_grpc.AdminServiceStub(channel)
            return verdict(stub.Evict, admin_pb.EvictRequest(all=True), metadata)

    def page(self, path: str, token: str = "") -> int:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(f"{self.daemon.admin_url}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as page:
                return int(page.status)
        except urllib.error.HTTPError as refused:
            return refused.code


@pytest.fixture
def audited(engines: Installed, tmp_path: Path) -> Iterator[Audited]:
    one = Audited(tmp_path)
    with one.daemon:
        yield one


def test_each_refusal_says_who_where_and_why(audited: Audited) -> None:
    unknown = f"wk_{'0' * 12}_{'1' * 48}"
    assert audited.evict(()) == "CREDENTIALS_MISSING"
    assert audited.evict(bearer(unknown)) == "CREDENTIALS_INVALID"
    assert audited.evict(bearer(audited.reader)) == "ROLE_MISSING admin"
    assert audited.evict(bearer(audited.operator)) == ""
    assert audited.page("/metrics") == 401
    assert audited.page("/metrics", audited.reader) == 403
    assert audited.page("/metrics", audited.operator) == 200
    assert audited.page("/no-page") == 401
    with grpc.insecure_channel(audited.daemon.address) as channel, pytest.raises(grpc.RpcError):
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
    with Caller(audited.daemon) as reader:
        call = reader.compile(wasm.adder(1), engine=ONE_ENGINE[0], metadata=bearer(audited.reader))
        assert outcome_of(call) is grpc.StatusCode.PERMISSION_DENIED
    evict = "/wasmkiln.v1.AdminService/Evict"
    told = [(line["identity"], line["method"], line["reason"]) for line in audited.lines("refusal")]
    assert told == [
        ("", evict, "CREDENTIALS_MISSING"),
        ("", evict, "CREDENTIALS_INVALID"),
        ("token:reader", evict, "ROLE_MISSING"),
        ("", "/metrics", "CREDENTIALS_MISSING"),
        ("token:reader", "/metrics", "ROLE_MISSING"),
        ("", "/no-page", "CREDENTIALS_MISSING"),
        ("", "/grpc.health.v1.Health/Check", "CREDENTIALS_MISSING"),
        ("token:reader", "/wasmkiln.v1.ModuleService/Compile", "ROLE_MISSING"),
    ]
    [done] = audited.lines("admin")
    assert (done["identity"], done["method"], done["code"]) == ("token:operator", evict, "OK")
    assert all(line["peer"].startswith("127.0.0.1:") for line in audited.lines("refusal"))
    text = audited.path.read_text() + audited.daemon.log
    for token in (unknown, audited.reader, audited.operator):
        assert token.rpartition("_")[2] not in text


def test_a_flood_by_strangers_hides_no_honest_line_and_fills_no_disk(audited: Audited) -> None:
    with Caller(audited.daemon) as stranger, Caller(audited.daemon) as honest:
        for number in range(1500):
            with pytest.raises(grpc.RpcError):
                stranger.stub.GetCapabilities(pb.GetCapabilitiesRequest(), timeout=30)
            if number % 500 == 0:
                module = wasm.adder(10_000 + number)
                metadata = bearer(audited.operator)
                assert list(honest.compile(module, engine=ONE_ENGINE[0], metadata=metadata))
                assert audited.evict(bearer(audited.reader)) == "ROLE_MISSING admin"
    assert len(audited.lines("compile")) == 3
    refused = audited.lines("refusal")
    assert sum(line["identity"] == "token:reader" for line in refused) == 3
    strangers = [line for line in refused if not line["identity"]]
    assert LINES <= len(strangers) < 3 * LINES
    assert audited.daemon.stop() == 0
    left_out = sum(line.get("left_out", 0) for line in audited.lines("refusal"))
    written = [line for line in audited.lines("refusal") if "left_out" not in line]
    assert left_out + len(written) == 1500 + 3


def test_what_changes_about_who_may_do_what_is_told(audited: Audited) -> None:
    before = len(audited.lines("change"))
    reload(audited.daemon)
    assert len(audited.lines("change")) == before
    token_command(audited.state, "revoke", "reader")
    audited.policy.write_text('[[rule]]\nidentity = "token:x"\nroles = ["read"]\n')
    reload(audited.daemon)
    told = {line["what"]: line for line in audited.lines("change")[before:]}
    assert set(told) == {"policy", "tokens"}
    assert told["policy"]["rules"] == 1
    assert "accepted" not in told["tokens"]
    assert len(told["tokens"]["dropped"]) == 12
