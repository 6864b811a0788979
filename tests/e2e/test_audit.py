"""The audit of a running daemon: who did what, and who was refused, before the answer is there."""

from __future__ import annotations

import itertools
import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from wasmkiln import ModuleInvalid, ModuleNotLoaded, NotWasm
from wasmkiln.v1 import admin_service_pb2 as admin_pb
from wasmkiln.v1 import admin_service_pb2_grpc
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1.module_service_pb2_grpc import ModuleServiceStub

from tests.e2e import wasm
from tests.e2e.bearers import Metadata, add_token, bearer, reload, token_command, verdict
from tests.e2e.callers import Caller, outcome_of
from tests.e2e.daemon import Daemon, RedisDaemon
from tests.e2e.processes import eventually, jobs_of
from tests.e2e.signing_keys import KeyDirectory, KeyPair

KILLS = int(os.environ.get("WASMKILN_TEST_KILLS", "3"))
"""How often a daemon is killed; each needs a start."""
ENGINE = "wasmer-1.1.0"
FLAGS = ("--workers", "1", "--redis-url", "none")
_tags = itertools.count(1)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def acts(path: Path) -> list[dict[str, Any]]:
    """Return the lines about calls."""
    return [line for line in lines(path) if "method" in line]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def audited(state: Path, path: Path, flags: Sequence[str] = ()) -> Daemon:
    return RedisDaemon(state, (*FLAGS, "--audit-file", str(path), *flags))


def test_each_act_has_its_line_and_a_hit_has_none(lean_state_dir: Path, path: Path) -> None:
    module, invalid = wasm.adder(next(_tags)), wasm.adder(next(_tags))[:-1]
    with audited(lean_state_dir, path) as daemon, daemon.client() as client:
        made = client.compile(module)
        client.compile(module)  # a hit, as is the next
        client.compile(made.header.module_sha256)
        loaded = client.load(wasm.adder(next(_tags)))
        with pytest.raises(ModuleNotLoaded):  # clients ask like this before they upload
            client.compile("0" * 64)
        with pytest.raises(NotWasm):
            client.compile(b"no module")
        with pytest.raises(ModuleInvalid):
            client.load(invalid)
        client.quarantined()
        client.evict(made.header.module_sha256)
        client.release(all=True)
        client.stats()
        client.capabilities()
        client.find_missing([made.header.module_sha256])
        client.drain()
        daemon.process.wait(120)
    found, sha256, bad = acts(path), made.header.module_sha256, "INVALID_ARGUMENT"
    done = {"module": sha256, "engine": ENGINE, "origin": "compiled", "uploaded": True}
    rows: list[tuple[str, str, str, dict[str, object]]] = [
        ("compile", "Compile", "OK", {**done}),
        ("upload", "Load", "OK", {"module": loaded.sha256}),
        ("compile", "Compile", bad, {"reason": "NOT_WASM"}),
        ("upload", "Load", bad, {"reason": "MODULE_INVALID", "module": wasm.digest(invalid)}),
        ("admin", "ListQuarantine", "OK", {}),
        ("admin", "Evict", "OK", {"module": sha256, "artifacts": 1}),
        ("admin", "ReleaseQuarantine", "OK", {"released": 0}),
        ("admin", "Drain", "OK", {}),
    ]
    for line, (event, method, code, fields) in zip(found, rows, strict=True):
        told = (line["event"], line["method"].rpartition("/")[2], line["code"])
        assert told == (event, method, code)
        assert fields.items() <= line.items()
    assert found[0]["peer"].startswith("127.0.0.1:")
    assert found[0]["request_id"]
    start, *_, stop = lines(path)
    assert start["event"] == "start"
    assert len(start["key_id"]) == 64
    assert stop["event"] == "stop"
    assert all("identity" in line and "time" in line for line in lines(path))


def test_an_upload_has_one_line_however_many_calls_it_takes(
    lean_state_dir: Path, path: Path
) -> None:
    module = wasm.adder(next(_tags))
    sha256, size_bytes = wasm.digest(module), len(module)
    with audited(lean_state_dir, path) as daemon, Caller(daemon) as caller:

        def upload(offset: int, data: bytes) -> grpc.StatusCode:
            message = pb.UploadRequest(
                sha256=sha256, size_bytes=size_bytes, offset=offset, data=data
            )
            code: grpc.StatusCode = caller.stub.Upload.future(iter([message])).code()
            return code

        for at in (9, 0):  # It does not begin there, and it ends before all has come.
            assert upload(at, module[at : at + 4]) is grpc.StatusCode.ABORTED
        assert upload(4, module[4:]) is grpc.StatusCode.OK
    [line] = acts(path)
    assert (line["event"], line["code"], line["module"]) == ("upload", "OK", sha256)


def test_callers_who_share_a_compile_or_leave_it_have_lines(
    lean_state_dir: Path, path: Path
) -> None:
    module = wasm.many_functions(5_000, tag=next(_tags))
    with audited(lean_state_dir, path) as daemon, Caller(daemon) as one, Caller(daemon) as other:
        first = one.compile(module, engine=ENGINE)
        eventually(lambda: jobs_of(daemon.pid), "no job started")
        [job] = jobs_of(daemon.pid)
        os.kill(job, signal.SIGSTOP)
        second = other.compile(module, engine=ENGINE)
        third = other.compile(module, engine=ENGINE)
        eventually(lambda: daemon.metric("calls") == 3, "the calls did not arrive")
        eventually(lambda: daemon.metric("receive_bytes") == 0, "they wait for nothing yet")
        third.cancel()
        eventually(lambda: len(acts(path)) == 1, "no line of the caller who left")
        os.kill(job, signal.SIGCONT)
        assert list(first)
        assert list(second)
        found = acts(path)
    assert [(line["event"], line["code"]) for line in found] == [
        ("compile", "CANCELLED"),
        ("compile", "OK"),
        ("compile", "OK"),
    ]
    assert sorted(line["origin"] for line in found[1:]) == ["compiled", "joined_flight"]
    assert len({line["module"] for line in found}) == 1


def test_a_killed_daemon_loses_no_line_of_an_answered_call(
    lean_state_dir: Path, path: Path
) -> None:
    answered = []
    for number in range(KILLS):
        with audited(lean_state_dir, path) as daemon, Caller(daemon) as caller:
            name = f"kill-{number}"
            assert list(caller.compile(wasm.adder(next(_tags)), engine=ENGINE, name=name))
            daemon.process.kill()
            answered.append(name)
    assert [line["request_id"] for line in acts(path)] == answered


def test_a_file_that_is_renamed_is_followed_and_sighup_changes_where_it_is(
    lean_state_dir: Path, path: Path, tmp_path: Path
) -> None:
    config, second = tmp_path / "wasmkilnd.toml", tmp_path / "second.jsonl"
    config.write_text(f'audit_file = "{path}"\n')
    with (
        RedisDaemon(lean_state_dir, (*FLAGS, "--config", str(config))) as daemon,
        daemon.client() as client,
    ):
        client.quarantined()
        path.rename(tmp_path / "audit.old")
        client.quarantined()
        assert len(acts(tmp_path / "audit.old")) == len(acts(path)) == 1
        reload(daemon)
        client.quarantined()
        assert len(acts(path)) == 2
        config.write_text(f'audit_file = "{tmp_path}"\n')
        daemon.process.send_signal(signal.SIGHUP)
        assert "cannot write the audit to" in daemon.wait_for_log('"cannot reload')
        client.quarantined()
        assert len(acts(path)) == 3
        other = KeyPair()
        KeyDirectory.of(lean_state_dir).trust(other.public)
        config.write_text(f'audit_file = "{second}"\n')
        reload(daemon)
        client.quarantined()
        assert len(acts(path)) == 3
        assert lines(path)[-1]["setting"] == "audit_file"
    change, act, _ = lines(second)
    assert (change["what"], change["key_id"]) == ("key_trusted", other.public.id)
    assert act["event"] == "admin"


def test_a_file_that_cannot_be_written_stops_no_call(lean_state_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    folder.mkdir()
    path = folder / "audit.jsonl"
    with pytest.raises(AssertionError, match=r"cannot write the audit to .*: Is a directory"):
        audited(lean_state_dir, folder)  # It is asked for at the start.
    with audited(lean_state_dir, path) as daemon, daemon.client() as client:
        path.unlink()
        folder.rmdir()
        for _ in range(3):
            client.quarantined()
        assert daemon.metric("audit_lost_total") == 3
        folder.mkdir()
        client.quarantined()
        daemon.wait_for_log("the audit is written again")
        assert daemon.log.count("cannot write the audit") == 1
        assert [line["event"] for line in lines(path)] == ["lost", "admin"]
        assert lines(path)[0]["lines"] == 3


def test_the_audit_may_go_to_the_log(lean_state_dir: Path) -> None:
    with (
        RedisDaemon(lean_state_dir, (*FLAGS, "--audit-file", "log")) as daemon,
        daemon.client() as client,
    ):
        for _ in range(50):
            client.quarantined()
        eventually(lambda: daemon.log.count('"act": "admin"') == 50, "lines are missing")
        line = json.loads(daemon.wait_for_log('"act": "admin"'))
    assert line["event"] == "audit"
    assert line["peer"].startswith("127.0.0.1:")


class Guarded:
    """A daemon that asks for tokens, and its audit."""

    def __init__(self, state: Path, path: Path) -> None:
        self.state, self.path, self.policy = state, path, path.with_name("policy.toml")
        self.policy.write_text("")
        self.operator = add_token(self.state, "operator", "admin", "metrics", "compile")
        self.reader = add_token(self.state, "reader", "read")
        self.daemon = audited(state, path, ("--policy-file", str(self.policy)))

    def lines(self, event: str) -> list[dict[str, Any]]:
        return [line for line in lines(self.path) if line["event"] == event]

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
def guarded(lean_state_dir: Path, path: Path) -> Iterator[Guarded]:
    one = Guarded(lean_state_dir, path)
    with one.daemon:
        yield one


def test_each_refusal_says_who_where_and_why(guarded: Guarded) -> None:
    unknown = f"wk_{'0' * 12}_{'1' * 48}"
    assert guarded.evict(()) == "CREDENTIALS_MISSING"
    assert guarded.evict(bearer(unknown)) == "CREDENTIALS_INVALID"
    assert guarded.evict(bearer(guarded.reader)) == "ROLE_MISSING admin"
    assert guarded.evict(bearer(guarded.operator)) == ""
    assert guarded.page("/metrics") == 401
    assert guarded.page("/metrics", guarded.reader) == 403
    assert guarded.page("/metrics", guarded.operator) == 200
    assert guarded.page("/no-page") == 401
    with grpc.insecure_channel(guarded.daemon.address) as channel, pytest.raises(grpc.RpcError):
        ModuleServiceStub(channel).GetCapabilities(pb.GetCapabilitiesRequest(), timeout=30)
    with Caller(guarded.daemon) as reader:
        call = reader.compile(wasm.adder(1), engine=ENGINE, metadata=bearer(guarded.reader))
        assert outcome_of(call) is grpc.StatusCode.PERMISSION_DENIED
    evict = "/wasmkiln.v1.AdminService/Evict"
    told = [(line["identity"], line["method"], line["reason"]) for line in guarded.lines("refusal")]
    assert told == [
        ("", evict, "CREDENTIALS_MISSING"),
        ("", evict, "CREDENTIALS_INVALID"),
        ("token:reader", evict, "ROLE_MISSING"),
        ("", "/metrics", "CREDENTIALS_MISSING"),
        ("token:reader", "/metrics", "ROLE_MISSING"),
        ("", "/no-page", "CREDENTIALS_MISSING"),
        ("", "/wasmkiln.v1.ModuleService/GetCapabilities", "CREDENTIALS_MISSING"),
        ("token:reader", "/wasmkiln.v1.ModuleService/Compile", "ROLE_MISSING"),
    ]
    [done] = guarded.lines("admin")
    assert (done["identity"], done["method"], done["code"]) == ("token:operator", evict, "OK")
    assert all(line["peer"].startswith("127.0.0.1:") for line in guarded.lines("refusal"))
    with Caller(guarded.daemon) as stranger:  # Of a flood some have a line, and all are counted.
        for _ in range(150):
            assert verdict(stranger.stub.GetCapabilities, pb.GetCapabilitiesRequest())
    assert guarded.daemon.stop() == 0
    refusals = guarded.lines("refusal")
    assert len(refusals) < len(told) + 150 == sum(line.get("left_out", 1) for line in refusals)
    text = guarded.path.read_text() + guarded.daemon.log
    for token in (unknown, guarded.reader, guarded.operator):
        assert token.rpartition("_")[2] not in text


def test_what_changes_about_who_may_do_what_is_told(guarded: Guarded) -> None:
    before = len(guarded.lines("change"))
    reload(guarded.daemon)
    assert len(guarded.lines("change")) == before
    token_command(guarded.state, "revoke", "reader")
    guarded.policy.write_text('[[rule]]\nidentity = "token:x"\nroles = ["read"]\n')
    reload(guarded.daemon)
    told = {line["what"]: line for line in guarded.lines("change")[before:]}
    assert set(told) == {"policy", "tokens"}
    assert told["policy"]["rules"] == 1
    assert "accepted" not in told["tokens"]
    assert len(told["tokens"]["dropped"]) == 12
