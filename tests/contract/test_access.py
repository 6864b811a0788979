"""Who is let in: certificates, users, and what they have to be allowed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from structlog.testing import capture_logs
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.usage import Usage

from tests.contract.redis_stores import SEALER, Site, site
from tests.contract.values import artifact, module
from tests.servers.deployments import KINDS_OF_REDIS, NO_ACCESS, Deployment
from tests.servers.redis_server import KINDS, binary_of, free_ports, redis_server


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with KINDS_OF_REDIS["rediss"](tmp_path_factory.mktemp("tls")) as running:
        yield running


def denials(deployment: Deployment) -> list[object]:
    """Return what the servers refused so far to users whom they let in."""
    found: list[object] = []
    for raw in deployment.raw:
        with raw() as client:
            try:
                found += [each for each in client.acl_log() if each["reason"] != "auth"]
            except redis.ConnectionError:
                continue  # Killed.
    return found


async def why_down(at: Site) -> str:
    """Return why the server lets nobody in, once it was asked."""
    await at.store.start()
    assert not at.link.up
    return at.link.why_down


@pytest.mark.parametrize("deployment", KINDS_OF_REDIS, indirect=True, scope="session")
async def test_the_documented_commands_are_enough(deployment: Deployment) -> None:
    """For uses, and for all that other files of this folder ask each kind of Redis for."""
    async with site(deployment.url, deployment.access) as at:
        for _ in range(2):
            usage = Usage(SEALER, at.store)
            made = SEALER.seal(artifact(1))
            usage.tally[made.module_sha256, made.spec] += 1
            await usage.save()
        assert [*(await usage.of_fleet()).counts.values()] == [pytest.approx(2, abs=0.1)]
    assert denials(deployment) == []


async def test_what_a_server_of_tls_is_asked_for(tls: Deployment) -> None:
    untrusted = "the certificate of Redis is not trusted: "
    for url, access, why in (
        (tls.url, NO_ACCESS, untrusted),
        (tls.url.replace("127.0.0.1", "localhost"), tls.access, f"{untrusted}.*ostname mismatch"),
        (tls.url.replace("rediss", "redis"), NO_ACCESS, ".*Redis"),
    ):
        async with site(url, access) as at:
            assert re.match(why, await why_down(at))
    async with site(f"{tls.url}?ssl_cert_reqs=none") as at:  # As the URL says.
        await at.store.start()
        assert at.link.up


@pytest.mark.parametrize("kind", KINDS)
async def test_a_server_that_quotes_the_password_back_is_not_quoted(
    kind: str, tmp_path: Path
) -> None:
    [port] = free_ports(1)
    renamed = ['rename-command AUTH ""']
    with redis_server(binary_of(kind), tmp_path, port=port, config=renamed), capture_logs() as logs:
        async with site(f"redis://app:hunter2@127.0.0.1:{port}") as at:
            why = await why_down(at)
            with pytest.raises(TierUnavailable) as raised:
                await at.store.put(module(1))
            told = f"{raised.value!r} {logs} {why} {at.store.write_refusal}"
    assert "the user or password" in told
    assert "hunter2" not in told
