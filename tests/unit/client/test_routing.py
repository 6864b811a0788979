"""Addresses of several daemons, and the metadata by which gRPC chooses one."""

from __future__ import annotations

import pytest
from wasmkiln._requests import in_batches
from wasmkiln._routing import MODULE, about, target
from wasmkiln._settings import choose_address
from wasmkiln.access import TLS, Access
from wasmkiln.access.places import host_and_port, is_local
from wasmkiln.v1.types_pb2 import ArtifactKey


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("ring:10.0.0.7:50051,10.0.0.8:50052", "ipv4:10.0.0.7:50051,10.0.0.8:50052"),
        ("ring:10.0.0.7:50051", "ipv4:10.0.0.7:50051"),
        ("ring:[::1]:1,[fd00::2]:2", "ipv6:[::1]:1,[fd00::2]:2"),
        ("ring:kilns.example.org:50051", "dns:kilns.example.org:50051"),
        ("ring:dns://10.0.0.1/kilns:50051", "dns://10.0.0.1/kilns:50051"),
        ("kiln.example.org:50051", "kiln.example.org:50051"),
        ("ipv4:10.0.0.7:1,10.0.0.8:2", "ipv4:10.0.0.7:1,10.0.0.8:2"),
    ],
)
def test_what_grpc_connects_to(address: str, expected: str) -> None:
    assert target(choose_address(address)) == expected


@pytest.mark.parametrize(
    "address",
    [
        *("ring:", "ring:kiln", "ring:kiln:0", "ring:kiln:65536", "ring:10.0.0.7:1,", "ring:a b:1"),
        *("ring:a:1,b:2", "ring:10.0.0.7:1,b:2", "ring:10.0.0.7:1,[::1]:2", "ring:unix:/kiln.sock"),
    ],
)
def test_an_address_of_several_that_is_none(address: str) -> None:
    with pytest.raises(ValueError, match="cannot use the address ring:"):
        choose_address(address)


def test_a_token_goes_to_several_daemons_of_this_machine_only() -> None:
    assert is_local("ring:127.0.0.1:1,127.0.0.2:1")
    assert not is_local("ring:127.0.0.1:1,10.0.0.7:1")
    assert Access.choose("ring:127.0.0.1:1,127.0.0.2:1", token="x" * 40).token
    with pytest.raises(ValueError, match="cannot send a token to ring:10"):
        Access.choose("ring:10.0.0.7:1,127.0.0.2:1", token="x" * 40)
    assert host_and_port("ring:10.0.0.7:1") is None


def test_certificates_of_a_list_need_a_name() -> None:
    address = "ring:10.0.0.7:1,10.0.0.8:1"
    with pytest.raises(ValueError, match="since a list has no name: use server_name"):
        Access.choose(address, tls=True)
    access = Access.choose(address, tls=TLS(server_name="kilns.example.org"))
    assert ("grpc.ssl_target_name_override", "kilns.example.org") in access.options()
    assert Access.choose("ring:kilns.example.org:1", tls=True).tls


def test_only_a_ring_changes_how_grpc_balances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPC_EXPERIMENTAL_RING_HASH_SET_REQUEST_HASH_KEY", "true")
    config = dict(Access.choose("ring:kilns:1").options())["grpc.service_config"]
    assert f'"requestHashHeader": "{MODULE}"' in config
    assert "grpc.service_config" not in dict(Access.choose("kilns:1").options())


def test_a_digest_is_told_and_nothing_is_not() -> None:
    assert about("ab" * 32) == (("wasmkiln-module", "ab" * 32),)
    assert about("") == ()


def test_a_batch_of_a_ring_is_about_one_module_and_keeps_the_order() -> None:
    keys = [ArtifactKey(module_sha256=sha256, engine=str(n)) for n, sha256 in enumerate("aabca")]
    batches = list(in_batches(keys, by_module=True))
    assert [[key.engine for key in batch.keys] for batch in batches] == [
        ["0", "1"],
        ["2"],
        ["3"],
        ["4"],
    ]
    assert len(list(in_batches(keys))) == 1


def test_a_batch_has_no_more_bytes_than_the_daemon_takes() -> None:
    settings = {f"setting_{number}": "x" * 200 for number in range(10)}
    keys = [
        ArtifactKey(module_sha256=f"{number:064x}", settings=settings if number % 2 else {})
        for number in range(9_000)
    ]
    batches = list(in_batches(keys))
    assert [key for batch in batches for key in batch.keys] == keys
    assert max(batch.ByteSize() for batch in batches) <= 2 * 1024 * 1024
    assert len(batches) < 12
    assert [len(batch.keys) for batch in in_batches([ArtifactKey()] * 10_001)] == [10_000, 1]
