"""Quotas of a running daemon: who is at one is refused, and nobody else notices."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1.types_pb2 import Origin

from tests.e2e import wasm
from tests.e2e.bearers import add_token, bearer, reload
from tests.e2e.callers import Caller, failure_of, header_of, modules, outcome_of, stopped_job
from tests.e2e.daemon import ONE_ENGINE, Daemon, fresh_state
from tests.e2e.processes import eventually
from tests.e2e.programs import Installed

ENGINE = ONE_ENGINE[0]
FLAGS = ("--workers", "1", "--queue-length", "10", "--redis-url", "none")
QUOTAS = {
    "calls": "calls_per_minute = 12",
    "minute": "compiles_per_minute = 4",
    "stored": "stored_bytes_per_hour = 2000",
}


def policy(quotas: Mapping[str, str]) -> str:
    """Return a policy with an identity for each quota, and one without."""
    rules = [
        f'[[rule]]\nidentity = "token:{name}"\nroles = ["compile", "metrics"]\nquota = "{name}"\n'
        f"[quota.{name}]\n{limit}\n"
        for name, limit in quotas.items()
    ]
    rules.append(
        '[[rule]]\nidentity = "token:free"\nroles = ["compile", "metrics"]\n'
        '[[rule]]\nidentity = "token:tenant"\nroles = ["compile", "metrics"]\n'
        'namespace = "team-a"\nquota = "tenant"\n'
        "[quota.tenant]\ncompiles_per_minute = 100\n"
    )
    return "\n".join(rules)


@dataclass
class Site:
    """A daemon with a policy, and callers with a token each."""

    daemon: Daemon
    file: Path
    tokens: Mapping[str, str]
    caller: Caller

    def compile(self, who: str, module: bytes | str, **options: Any) -> Any:
        """Begin a call; return it without waiting."""
        metadata = (*bearer(self.tokens[who]), *options.pop("metadata", ()))
        return self.caller.compile(module, engine=ENGINE, metadata=metadata, **options)

    def stats(self, who: str = "free") -> pb.StatsResponse:
        """Return what Stats says to a caller."""
        answer: pb.StatsResponse = self.caller.stub.Stats(
            pb.StatsRequest(), metadata=bearer(self.tokens[who]), timeout=60
        )
        return answer

    def used(self, name: str, kind: str) -> tuple[float, float, int]:
        """Return what an identity has used of a quota: used, limit, refusals."""
        for row in self.stats().quotas:
            if (row.identity, row.quota) == (f"token:{name}", kind):
                return row.used, row.limit, row.refused
        return 0.0, 0.0, 0

    def metric(self, name: str, **labels: str) -> float:
        """Return a metric, as who has no quota reads it."""
        return self.daemon.metric(name, token=self.tokens["free"], **labels)


@pytest.fixture(scope="module")
def site(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    state = fresh_state(tmp_path_factory.mktemp("quotas") / "state", engines=ONE_ENGINE)
    tokens = {name: add_token(state, name, "read") for name in (*QUOTAS, "free", "tenant")}
    file = state.with_name("policy.toml")
    file.write_text(policy(QUOTAS))
    flags = (*FLAGS, "--policy-file", str(file))
    with Daemon(state, flags) as daemon, Caller(daemon) as caller:
        yield Site(daemon, file, tokens, caller)
    for token in tokens.values():
        assert token not in daemon.log


def refused(call: Any, quota: str) -> float:
    """Check that a call is refused for a quota; return how many seconds it is to wait."""
    code, reason, metadata, retry_s = failure_of(call)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (reason, metadata) == ("QUOTA_EXCEEDED", {"quota": quota})
    assert retry_s > 0
    return retry_s


def test_calls_per_minute(site: Site) -> None:
    module = modules(1)[0]
    header_of(site.compile("free", module))
    began = time.monotonic()
    count = 0
    while outcome_of(site.compile("calls", wasm.digest(module))) is grpc.StatusCode.OK:
        count += 1
    # Hits count too; one more every 5 s, which a busy machine may need for those.
    assert 0 <= count - 12 <= (time.monotonic() - began) / 5
    wait_s = refused(site.compile("calls", wasm.digest(module)), "calls_per_minute")
    assert wait_s <= 5
    used, limit, refusals = site.used("calls", "calls_per_minute")
    assert 11 < used <= limit == 12
    assert refusals >= 2
    assert site.metric("quota_used_ratio", quota="calls_per_minute") > 0.7
    assert site.metric("quota_refused_total", quota="calls_per_minute") >= 2
    header_of(site.compile("free", wasm.digest(module)))
    # Stats of a namespace are its own.
    header_of(site.compile("tenant", module))
    seen, whole = site.stats("tenant"), site.stats()
    assert (seen.namespace, {row.identity for row in seen.quotas}) == ("team-a", {"token:tenant"})
    assert whole.namespace == ""
    assert {"token:tenant", "token:calls"} <= {row.identity for row in whole.quotas}
    time.sleep(wait_s)
    header_of(site.compile("calls", wasm.digest(module)))


def test_compiles_per_minute(site: Site) -> None:
    began = time.monotonic()
    mine = modules(4)
    for module in mine:
        header_of(site.compile("minute", module))
    # One more every 15 s, which a busy machine may need for those.
    more = used_up(site)
    assert more <= (time.monotonic() - began) / 15
    one_more = modules(1)[0]
    wait_s = refused(site.compile("minute", one_more), "compiles_per_minute")
    assert wait_s <= 15
    for module in mine:  # What a tier has costs nothing.
        header_of(site.compile("minute", module))
    header_of(site.compile("free", one_more))
    header_of(site.compile("minute", one_more))


def test_joining_costs_nothing(site: Site) -> None:
    used_up(site)
    module = modules(1)[0]
    job, holder = stopped_job(site.daemon, lambda one: site.compile("free", one))
    try:
        first = site.compile("free", module)
        eventually(lambda: site.stats().queue_depth == 1, "it does not wait")
        joined = site.compile("minute", module)
        # The one that holds the worker, the first and the one that joined it.
        eventually(lambda: site.metric("calls") == 3, "it does not join")
        refused(site.compile("minute", modules(1)[0]), "compiles_per_minute")
    finally:
        os.kill(job, signal.SIGCONT)
    header_of(holder)
    assert header_of(first).origin == Origin.ORIGIN_COMPILED
    assert header_of(joined).origin == Origin.ORIGIN_JOINED_FLIGHT


def used_up(site: Site) -> int:
    """Use up the quota ``minute``; return how many compiles that took."""
    for count, module in enumerate(modules(100)):
        if outcome_of(site.compile("minute", module)) is not grpc.StatusCode.OK:
            return count
    raise AssertionError("a hundred compiles did not use it up")


def test_stored_bytes_keep_new_work_out_and_a_reload_keeps_them(site: Site) -> None:
    first = modules(1)[0]
    header = header_of(site.compile("stored", first))
    stored = len(first) + header.size_bytes
    used, limit, _ = site.used("stored", "stored_bytes_per_hour")
    assert stored - 60 < used <= stored, "a byte comes back in 2 s"
    while site.used("stored", "stored_bytes_per_hour")[0] < limit:
        header_of(site.compile("stored", modules(1)[0]))
    refused(site.compile("stored", modules(1)[0]), "stored_bytes_per_hour")
    load = site.caller.channel.unary_stream("/wasmkiln.v1.ModuleService/Load")
    request = pb.LoadRequest(module=modules(1)[0]).SerializeToString()
    metadata = bearer(site.tokens["stored"])
    refused(load(request, metadata=metadata, timeout=120), "stored_bytes_per_hour")
    header_of(site.compile("stored", first))
    header_of(site.compile("free", modules(1)[0]))
    reloaded(site, {**QUOTAS, "stored": f"stored_bytes_per_hour = {10**6}"})
    header_of(site.compile("stored", modules(1)[0]))
    assert site.used("stored", "stored_bytes_per_hour")[0] > 1000
    # Nor is a figure left of one that is taken out.
    reloaded(site, {name: limit for name, limit in QUOTAS.items() if name != "stored"})
    assert site.used("stored", "stored_bytes_per_hour") == (0, 0, 0)
    assert site.metric("quota_used_ratio", quota="stored_bytes_per_hour") == 0
    reloaded(site, QUOTAS)


def reloaded(site: Site, quotas: Mapping[str, str]) -> None:
    """Put another policy in force."""
    site.file.write_text(policy(quotas))
    reload(site.daemon)
