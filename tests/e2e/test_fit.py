"""A host shows its engine, and gets code that this engine loads and runs.

Each host of the matrix is a process of its own, and asks by its engine alone: it names no setting.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import wasmtime
from wasmkiln import (
    Client,
    CompatibilityUnsupported,
    InvalidRequest,
    RoleMissing,
    engine_of,
    loading,
)
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1 import module_service_pb2_grpc, types_pb2

from tests.e2e import wasm
from tests.e2e.bearers import add_token, reason_of
from tests.e2e.daemon import TWO_ENGINES, Daemon, fresh_state
from tests.e2e.fixtures import serving
from tests.e2e.processes import eventually
from tests.e2e.programs import run

ENGINE = "wasmtime-50.0.1"
NOBODY = "127.0.0.1:1"
KIB, MIB = 2**10, 2**20
# Makes an engine as it is told, asks for a module by it, and runs that.
HOST = """
import json, sys, wasmkiln, wasmtime
told, address, module = json.loads(sys.argv[1]), sys.argv[2], bytes.fromhex(sys.argv[3])
config = wasmtime.Config()
if told["target"]:
    config.target = told["target"]
for name in told["flags"]:
    config.cranelift_flag_enable(name)
for name, value in told["settings"].items():
    setattr(config, name, value)
for name, value in told["library"].items():
    getattr(wasmtime._bindings, f"wasmtime_config_{name}_set")(config.ptr(), value)
engine = wasmtime.Engine(config)
with wasmkiln.Client(address, host_store_dir="none", timeout_s=120) as client:
    try:
        header = client.compile(module, into=engine, omit_artifact=True).header
        loaded = client.module(module, into=engine)
    except wasmkiln.CompatibilityUnsupported as refused:
        print(json.dumps({"lacking": refused.metadata["differences"]}))
        sys.exit()
store = wasmtime.Store(engine)
if told["settings"].get("consume_fuel"):
    store.set_fuel(10_000)
if told["settings"].get("epoch_interruption"):
    store.set_epoch_deadline(100)
sum = wasmtime.Instance(store, loaded, []).exports(store)["add"](store, 40, 2)
print(json.dumps({"sum": sum, "target": header.target, "gets": dict(header.changed_settings)}))
"""
HERE = "x86_64-unknown-linux-gnu"
V2 = ("has_sse3", "has_ssse3", "has_cmpxchg16b", "has_sse41", "has_sse42", "has_popcnt")
V3 = (*V2, *(f"has_{name}" for name in ("lzcnt", "avx", "avx2", "bmi1", "bmi2", "fma")))
FUEL: dict[str, object] = {"consume_fuel": True}
EPOCHS: dict[str, object] = {"epoch_interruption": True}
NO_SIMD: dict[str, object] = {"wasm_simd": False, "wasm_relaxed_simd": False}


@dataclass(frozen=True)
class Host:
    """How a host makes its engine, and the settings of the code that it gets.

    - ``library``: settings that ``wasmtime.Config`` has no attribute for.
    - ``lacking``: of an engine for which the daemon makes no code, the difference that it names.
    """

    gets: str = ""
    settings: dict[str, object] = field(default_factory=dict)
    library: dict[str, object] = field(default_factory=dict)
    target: str = ""
    flags: tuple[str, ...] = ()
    lacking: str = ""


HOSTS = {
    "the wheel's defaults": Host(),
    "fuel": Host("consume_fuel=true", FUEL),
    "epochs": Host("epoch_interruption=true", EPOCHS),
    "fuel and epochs": Host("consume_fuel=true epoch_interruption=true", FUEL | EPOCHS),
    "no copy on write": Host("memory_init_cow=false", {"memory_init_cow": False}),
    "debug information": Host("debug_info=true", {"debug_info": True}),
    "no collector": Host("gc_support=false", {"gc_support": False}),
    "no signals": Host("signals_based_traps=false", {"signals_based_traps": False}),
    "no reservation": Host("memory_reservation=0", {"memory_reservation": 0}),
    "3 MiB reserved": Host("memory_reservation=3145728", {"memory_reservation": 3 * MIB}),
    "a guard of 64 KiB": Host("memory_guard_size=65536", {"memory_guard_size": 64 * KIB}),
    "a guard of 1 MiB": Host("memory_guard_size=1048576", {"memory_guard_size": MIB}),
    "neither reservation nor guard": Host(
        "memory_reservation=0 memory_guard_size=0",
        {"memory_reservation": 0, "memory_guard_size": 0},
    ),
    "room for growth": Host("", {"memory_reservation_for_growth": 12345}),
    "memories that stay": Host("memory_may_move=false", {"memory_may_move": False}),
    "no SIMD": Host("wasm_relaxed_simd=false wasm_simd=false", NO_SIMD),
    "no relaxed SIMD": Host("wasm_relaxed_simd=false", {"wasm_relaxed_simd": False}),
    "not optimised": Host("", {"cranelift_opt_level": "none"}),
    "the same NaN everywhere": Host(
        "cranelift_nan_canonicalization=true", {"cranelift_nan_canonicalization": True}
    ),
    "the compiler's own checks": Host(
        settings={"cranelift_debug_verifier": True}, lacking="flag enable_verifier is 1 there"
    ),
    "stack switching": Host("wasm_stack_switching=true", {"wasm_stack_switching": True}),
    "pages of other sizes": Host("wasm_custom_page_sizes=true", {"wasm_custom_page_sizes": True}),
    "no concurrency": Host("concurrency_support=false", library={"concurrency_support": False}),
    "winch": Host("strategy=winch", library={"strategy": 2}),
    "winch, and a proposal that it lacks by default": Host(
        "strategy=winch", {"wasm_wide_arithmetic": True}, {"strategy": 2}
    ),
    "winch, told how hard to optimise": Host(
        "strategy=winch", {"cranelift_opt_level": "speed"}, {"strategy": 2}
    ),
    "winch and fuel": Host("consume_fuel=true strategy=winch", FUEL, {"strategy": 2}),
    "a CPU of level 2": Host(target=HERE, flags=V2),
    "a CPU without anything, and fuel": Host("consume_fuel=true", FUEL, target=HERE),
    "pulley64": Host(target="pulley64"),
    "pulley64 and fuel": Host("consume_fuel=true", FUEL, target="pulley64"),
    "much at once": Host(
        "consume_fuel=true epoch_interruption=true gc_support=false memory_reservation=0"
        " signals_based_traps=false wasm_relaxed_simd=false wasm_simd=false",
        {
            **(FUEL | EPOCHS | NO_SIMD),
            "gc_support": False,
            "signals_based_traps": False,
            "memory_reservation": 0,
        },
    ),
}

kiln = serving(*TWO_ENGINES)


@pytest.fixture
def client(kiln: Daemon) -> Iterator[Client]:
    with kiln.client(host_store_dir="none", timeout_s=120) as one:
        yield one


@pytest.fixture
def stub(kiln: Daemon) -> Iterator[Any]:
    with grpc.insecure_channel(kiln.address) as channel:
        yield module_service_pb2_grpc.ModuleServiceStub(channel)


def shown(target: str = "", flags: tuple[str, ...] = (), **settings: object) -> bytes:
    """Return what an engine says of itself."""
    config = wasmtime.Config()
    if target:
        config.target = target
    for name in flags:
        config.cranelift_flag_enable(name)
    for name, value in settings.items():
        setattr(config, name, value)
    return loading.shown_by(wasmtime.Engine(config))


def shown_by_winch() -> bytes:
    config = wasmtime.Config()
    wasmtime._bindings.wasmtime_config_strategy_set(config.ptr(), 2)
    return loading.shown_by(wasmtime.Engine(config))


def key_of(section: bytes) -> bytes:
    return hashlib.sha256(section).digest()


def compiled(daemon: Daemon, token: str = "") -> float:
    return daemon.metric("compiles_total", token=token, engine=ENGINE, outcome="ok")


def reason(stub: Any, **fields: Any) -> str:
    """Call Compile; return the reason of its error, "" if it succeeds."""
    try:
        for _ in stub.Compile(pb.CompileRequest(**fields), timeout=60):
            pass
    except grpc.RpcError as refused:
        return reason_of(refused)
    return ""


@pytest.mark.parametrize("name", HOSTS)
def test_a_host_runs_what_it_gets_by_its_engine_alone(kiln: Daemon, name: str) -> None:
    host = HOSTS[name]
    done = run(sys.executable, "-c", HOST, json.dumps(asdict(host)), kiln.address, MODULE.hex())
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout)
    if host.lacking:
        assert host.lacking in said["lacking"]
    else:
        gets = dict(pair.split("=") for pair in host.gets.split())
        target = host.target or HERE
        assert said == {"sum": 42, "target": target, "gets": gets}


MODULE = wasm.adder(3700)


def test_hosts_with_different_cpus_share_one_compile(kiln: Daemon, client: Client) -> None:
    before, module = compiled(kiln), wasm.adder(3701)
    hosts = shown(), shown(HERE, V3), shown(HERE, (*V3, "has_avx512f"))
    assert len(set(hosts)) == 3
    headers = [client.compile(module, into=each).header for each in hosts]
    assert len({each.fingerprint for each in headers}) == 1
    origins = [each.origin for each in headers]
    assert origins == [types_pb2.ORIGIN_COMPILED, *[types_pb2.ORIGIN_MEMORY] * 2]
    assert compiled(kiln) == before + 1


def altered(section: bytes, old: bytes, new: bytes) -> bytes:
    assert section.count(old) == 1
    return section.replace(old, new)


def test_what_cannot_be_made_is_refused_by_its_difference(kiln: Daemon, client: Client) -> None:
    arm = b"\x19aarch64-unknown-linux-gnu"
    refused = {
        altered(shown(), b"\x0250", b"\x0251"): "it is of version 51, and wasmtime-50.0.1 is of",
        altered(shown(), b"\x18" + HERE.encode(), arm): "it is on aarch64-unknown-linux-gnu",
        shown(cranelift_debug_verifier=True): "flag enable_verifier is 1 there, and 0 in what",
    }
    before = compiled(kiln)
    for section, why in refused.items():
        with pytest.raises(CompatibilityUnsupported) as failure:
            client.compile(wasm.adder(3702), into=section)
        assert why in failure.value.message
        assert why in failure.value.metadata["differences"]
        assert failure.value.metadata["engine"] == ENGINE
    assert compiled(kiln) == before


def test_settings_that_no_engine_takes_together_are_refused_before_a_compile(
    kiln: Daemon, client: Client, stub: Any
) -> None:
    """Code can be made under each of them alone: only to compile with both shows that it cannot."""
    winch, usual, debugged = shown_by_winch(), shown(), shown(debug_info=True)
    [at] = (n for n in range(-len(usual), 0) if usual[n] != debugged[n])
    made_up = winch[:at] + debugged[at : at + 1] + winch[at + 1 :]
    before = compiled(kiln)
    for _ in range(2):
        with pytest.raises(CompatibilityUnsupported) as refused:
            client.compile(wasm.adder(3704), into=made_up)
        why = "compiles nothing with debug_info=true, strategy=winch"
        assert why in refused.value.metadata["differences"]
        assert refused.value.metadata["engine"] == ENGINE
    assert compiled(kiln) == before
    # A key of what was never compared has code that is stored, and none made for it.
    key, stored = key_of(made_up), wasm.digest(wasm.adder(3704))
    assert reason(stub, sha256=stored, compatibility=key) == "MODULE_NOT_LOADED"
    assert reason(stub, module=wasm.adder(3704), compatibility=key) == "COMPATIBILITY_UNKNOWN"


def test_the_header_has_the_key_of_its_code(kiln: Daemon, client: Client) -> None:
    """Of what was just compiled, and of what a host asks for by its engine."""
    module = wasm.adder(3705)
    made = client.compile(module, settings=FUELED_CODE)
    own = key_of(loading.section_of(made.bytes))
    assert made.header.compatibility == own
    assert client.compile(module, settings=FUELED_CODE).header.compatibility == own
    host = shown(HERE, V3, consume_fuel=True)
    for _ in ("by section", "by key"):
        got = client.compile(wasm.adder(3706), into=host)
        assert got.header.compatibility == own == key_of(loading.section_of(got.bytes))


def test_fast_code_is_for_hosts_that_load_it(client: Client) -> None:
    """Whether a host accepts it or not."""
    winch, module = shown_by_winch(), wasm.adder(3707)
    for section, is_fast in ((shown(), False), (winch, True)):
        made = client.compile(module, into=section, accept_fast=True)
        assert made.header.is_fast is is_fast
        assert made.header.compatibility == key_of(loading.section_of(made.bytes))


def test_what_is_no_section_is_an_invalid_request(client: Client, stub: Any) -> None:
    for damaged in (b"\0garbage", shown()[:200], shown() + b"\xff", b"\0"):
        assert reason(stub, module=MODULE, compatibility=damaged) == "INVALID_REQUEST"
        with pytest.raises(InvalidRequest, match="compatibility"):
            client.compile(MODULE, into=damaged)
    large = reason(stub, module=MODULE, compatibility=bytes(16 * KIB + 1))
    assert large == "INVALID_REQUEST"
    with pytest.raises(ValueError, match="nothing that wasmtime compiled"):
        client.compile(MODULE, into=MODULE)


def test_a_key_nobody_sent_is_unknown_and_the_client_sends_the_section(
    client: Client, stub: Any
) -> None:
    section = shown(consume_fuel=True, memory_reservation=5 * MIB)
    key = key_of(section)
    assert reason(stub, module=MODULE, compatibility=key) == "COMPATIBILITY_UNKNOWN"
    got = dict(client.compile(MODULE, into=section).header.changed_settings)
    assert got == {"consume_fuel": "true", "memory_reservation": str(5 * MIB)}
    assert reason(stub, sha256=wasm.digest(MODULE), compatibility=key) == ""


def test_a_host_with_the_defaults_is_known_before_it_shows_itself(stub: Any) -> None:
    key = key_of(shown())
    assert reason(stub, module=MODULE, compatibility=key) == ""


FUELED, FUELED_CODE = {"consume_fuel": True}, {"consume_fuel": "true"}


@pytest.mark.parametrize("known", [False, True], ids=["first", "again"])
@pytest.mark.parametrize(
    ("field", "host", "given"),
    [
        ("engine", {}, {"engine": "wasmer"}),
        ("target", {}, {"target": "pulley64"}),
        ("cpu", {"target": HERE, "flags": V2}, {"cpu": "x86-64-v3"}),
        ("settings", FUELED, {"settings": {"consume_fuel": "false"}}),
        ("settings", {}, {"settings": {"consume_fuel": "true"}}),
        ("settings", {}, {"settings": {"memory_reservation": "3145728"}}),
        ("settings", {"memory_reservation": 0}, {"settings": {"memory_reservation": str(2**32)}}),
        ("settings", NO_SIMD, {"settings": {"wasm_simd": "true"}}),
    ],
)
def test_what_contradicts_is_refused_by_its_field(
    client: Client, field: str, host: dict[str, Any], given: dict[str, Any], known: bool
) -> None:
    # Another number in each: no other test has shown it.
    grows = {} if known else {"memory_reservation_for_growth": random.getrandbits(24)}
    section = shown(**(host | grows))
    if known:
        client.compile(MODULE, into=section)
    with pytest.raises(InvalidRequest, match=f"{field} contradicts compatibility") as refused:
        client.compile(MODULE, into=section, **given)
    assert [each.field for each in refused.value.field_violations] == [field]


@pytest.mark.parametrize(
    ("host", "given", "gets"),
    [
        ({}, {"engine": ENGINE}, {}),
        ({}, {"engine": "wasmtime"}, {}),
        ({}, {"target": HERE, "cpu": "native"}, {}),
        (FUELED, {"settings": {"consume_fuel": "true"}}, {"consume_fuel": "true"}),
        (
            FUELED,
            {"settings": {"cranelift_opt_level": "none"}},
            {"consume_fuel": "true", "cranelift_opt_level": "none"},
        ),
        ({}, {"settings": {"gc_support": "false"}}, {"gc_support": "false"}),
        (
            {},
            {"settings": {"wasm_simd": "false", "wasm_relaxed_simd": "false"}},
            {"wasm_simd": "false", "wasm_relaxed_simd": "false"},
        ),
    ],
)
def test_what_agrees_is_taken(
    client: Client, host: dict[str, Any], given: dict[str, Any], gets: dict[str, str]
) -> None:
    artifact = client.compile(MODULE, into=shown(**host), **given)
    assert dict(artifact.header.changed_settings) == gets
    config = wasmtime.Config()
    for name, value in host.items():
        setattr(config, name, value)
    wasmtime.Module.deserialize(wasmtime.Engine(config), artifact.bytes)


def test_keys_of_find_missing_may_show_an_engine(client: Client, stub: Any) -> None:
    section = shown(consume_fuel=True)
    held, fresh = wasm.digest(MODULE), wasm.digest(wasm.adder(3703))
    client.compile(MODULE, into=section)

    def missing(*keys: tuple[str, bytes]) -> list[str]:
        sent = [types_pb2.ArtifactKey(module_sha256=s, compatibility=c) for s, c in keys]
        answer = stub.FindMissing(pb.FindMissingRequest(keys=sent), timeout=60)
        assert all(each in sent for each in answer.missing)
        return [each.module_sha256 for each in answer.missing]

    for which in (section, key_of(section)):
        assert missing((held, which), (fresh, which)) == [fresh]
    with pytest.raises(grpc.RpcError) as refused:
        missing((held, bytes(32)))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.RpcError) as refused:
        missing((held, shown(cranelift_debug_verifier=True)))
    assert reason_of(refused.value) == "COMPATIBILITY_UNSUPPORTED"


def test_who_may_only_read_gets_what_a_tier_has(engines: object, tmp_path: Path) -> None:
    state = fresh_state(tmp_path / "state", engines=[ENGINE])
    reader = add_token(state, "reader", "read")
    maker = add_token(state, "maker", "compile", "metrics")
    section = shown(consume_fuel=True)
    with (
        Daemon(state) as daemon,
        daemon.client(token=reader, host_store_dir="none") as reads,
        daemon.client(token=maker, host_store_dir="none") as makes,
    ):
        with pytest.raises(RoleMissing):
            reads.compile(MODULE, into=section)
        assert compiled(daemon, maker) == 0
        made = makes.compile(MODULE, into=section)
        for _ in ("by section", "by key"):
            got = reads.compile(wasm.digest(MODULE), into=section)
            assert got.bytes == made.bytes
        assert compiled(daemon, maker) == 1


def test_a_key_outlives_a_restart_and_serves_while_the_daemon_is_down(
    engines: object, tmp_path: Path
) -> None:
    state = fresh_state(tmp_path / "state", engines=[ENGINE])
    config = wasmtime.Config()
    config.memory_reservation = 7 * MIB
    engine = wasmtime.Engine(config)
    key = key_of(loading.shown_by(engine))
    told, store = state / "host_store" / "engines.json", state / "host_store"
    with Daemon(state) as daemon, daemon.client(host_store_dir="none") as client:
        header = client.compile(MODULE, into=engine).header
        eventually(lambda: key.hex() in json.loads(told.read_text())["fits"], "it is not told")
        entry = store / header.fingerprint
        eventually(lambda: any(store.rglob(f"*{wasm.digest(MODULE)}*")), f"nothing in {entry}")
    with Client(NOBODY, host_store_dir=store, max_attempts=1) as alone:
        module = alone.module(MODULE, into=engine)
        own = wasmtime.Store(engine_of(module))
        assert wasmtime.Instance(own, module, []).exports(own)["add"](own, 40, 2) == 42
    with Daemon(state) as daemon, grpc.insecure_channel(daemon.address) as channel:
        again = module_service_pb2_grpc.ModuleServiceStub(channel)
        assert reason(again, sha256=wasm.digest(MODULE), compatibility=key) == ""
        assert compiled(daemon) == 0
        assert json.loads(told.read_text())["fits"][key.hex()]["fingerprint"] == header.fingerprint


def test_what_an_older_daemon_recorded_and_this_one_does_not_make_is_learned_again(
    engines: object, tmp_path: Path
) -> None:
    state, section = fresh_state(tmp_path / "state", engines=[ENGINE]), shown(consume_fuel=True)
    key, record = key_of(section).hex(), state / "engine-names.json"
    with Daemon(state) as daemon, daemon.client(host_store_dir="none") as client:
        client.compile(MODULE, into=section)
        eventually(lambda: key in record.read_text(), "it is not recorded")
    told = json.loads(record.read_text())
    for fit in told["fits"].values():
        fit["settings"]["of_an_older_daemon"] = "true"
    record.write_text(json.dumps(told))
    with Daemon(state) as daemon, daemon.client(host_store_dir="none") as client:
        header = client.compile(MODULE, into=section).header
        assert dict(header.changed_settings) == FUELED_CODE
        list_of_engines = state / "host_store" / "engines.json"
        eventually(lambda: key in json.loads(list_of_engines.read_text())["fits"], "not told")
