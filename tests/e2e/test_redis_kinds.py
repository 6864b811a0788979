"""A daemon with each kind of Redis; it never shows a secret."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToJson
from wasmkiln import Client
from wasmkiln.v1 import types_pb2

from tests.e2e import wasm
from tests.e2e.daemon import ONE_ENGINE, RedisDaemon, fresh_state
from tests.e2e.programs import WASMKILND, Installed
from tests.e2e.test_cache import settled
from tests.servers.deployments import KINDS_OF_REDIS, Deployment

SECRETS = ("pass/word", "pass%2Fword", "the-token", "the-primary", "the-sentinels", ":secret")


@pytest.fixture(params=["acl", "rest", "sentinel", "cluster"])
def deployed(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[Deployment, dict[str, str]]]:
    with KINDS_OF_REDIS[request.param](tmp_path / "redis") as running:
        yield running, running.environment


def shown_configuration(environ: Mapping[str, str]) -> str:
    """Return what ``wasmkilnd config`` prints, in both its forms."""
    forms: tuple[list[str], ...] = ([], ["--json"])
    return "".join(
        subprocess.run(
            [WASMKILND, "config", *form],
            env={"HOME": "/h", **environ},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for form in forms
    )


def store(client: Client, tag: int) -> str:
    """Compile a module until Redis has taken it; return its digest."""
    deadline = time.monotonic() + 30
    while True:
        dropped = client.stats().dropped_writes
        header = client.compile(wasm.adder(tag), skip_cache_lookup=True).header
        settled(client)
        if client.stats().dropped_writes == dropped:
            return header.module_sha256
        assert time.monotonic() < deadline, "Redis took nothing in time"


def test_what_one_daemon_compiles_another_finds_and_no_secret_is_told(
    engines: Installed, tmp_path: Path, deployed: tuple[Deployment, dict[str, str]]
) -> None:
    running, environ = deployed
    with (
        RedisDaemon(fresh_state(tmp_path / "a", engines=ONE_ENGINE), environ=environ) as one,
        one.client() as client,
    ):
        first = client.compile(wasm.adder(1))
        settled(client)
        assert client.stats().redis_up
        assert "tier is down" not in one.log
        running.fail_over()  # Where there is somebody to take over; the daemon goes on.
        stored = [store(client, tag) for tag in range(2, 10)]
        assert client.stats().redis_up
    told = one.banner + one.log
    with (
        RedisDaemon(fresh_state(tmp_path / "b", engines=ONE_ENGINE), environ=environ) as two,
        two.client() as client,
    ):
        second = client.compile(first.header.module_sha256)
        assert second.header.origin == types_pb2.ORIGIN_REDIS
        assert second.bytes == first.bytes
        for sha256 in stored:
            assert client.compile(sha256).header.origin == types_pb2.ORIGIN_REDIS
        stats = client.stats()
        assert stats.redis_mode == "external"
        told += MessageToJson(stats)
    assert "tier is down" not in two.log
    told += two.banner + two.log + shown_configuration(environ)
    assert not [secret for secret in SECRETS if secret in told]


def test_a_daemon_that_is_not_let_in_starts_and_tells_no_secret(
    engines: Installed, tmp_path: Path
) -> None:
    with KINDS_OF_REDIS["rediss"](tmp_path / "redis") as running:
        assert running.stranger
        url, access = running.stranger
        environ = access.environment(url)
        with RedisDaemon(
            fresh_state(tmp_path / "a", engines=ONE_ENGINE), environ=environ
        ) as daemon:
            assert "which does not answer yet" in daemon.banner
            with daemon.client() as client:
                assert client.compile(wasm.adder(1)).header.origin == types_pb2.ORIGIN_COMPILED
                stats = client.stats()
                assert stats.redis_detail == "Redis refuses the user or password"
        line = daemon.wait_for_log("tier is down")
        assert json.loads(line)["detail"] == "Redis refuses the user or password"
        assert "wrong-secret" not in daemon.banner + daemon.log + MessageToJson(stats)


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"WASMKILN_REDIS_URL": "redis+sentinel://:hunter2@h"}, "which primary"),
        ({"WASMKILN_REDIS_URL": "https://x.example"}, "needs a token"),
        (
            {"WASMKILN_REDIS_URL": "rediss://h", "WASMKILN_REDIS_CA_FILE": "/nowhere.pem"},
            "redis_ca_file: /nowhere.pem: No such file or directory",
        ),
    ],
)
def test_what_cannot_be_used_ends_the_start_with_one_sentence(
    engines: Installed, tmp_path: Path, environ: dict[str, str], sentence: str
) -> None:
    state = fresh_state(tmp_path / "state", engines=ONE_ENGINE)
    ended = subprocess.run(
        [
            *(WASMKILND, "serve", "--state-dir", str(state)),
            *("--listen", "127.0.0.1:0", "--admin-listen", "none"),
        ],
        env={"HOME": "/h", "PATH": "/usr/bin:/bin", **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode in (1, 2)
    [error] = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert sentence in error
    assert "hunter2" not in ended.stderr
    assert "Traceback" not in ended.stderr
